// SPDX-License-Identifier: Apache-2.0
//
// stress THREADS ROUNDS: threads of one process that do everything at once, for sanitizers: launches on
// shared and own streams, memory of all sizes, questions, waits, captures, and now and then somebody
// replaces the descriptor of our ledger, as daemons do. Prints what it counted.
#include <dirent.h>
#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "driver.h"

namespace {

constexpr unsigned kReplaceEvery = 50, kReplaced = 20; // each leaves a number taken

std::atomic<unsigned> launched{0}, granted{0}, refused{0};
rough::Driver driver;

CUstream stream_of(std::uint64_t number) {
    return number == 0 ? nullptr : reinterpret_cast<CUstream>(0x1000 + number * 0x100);
}

// The number stays taken, by a file that knows of no locks.
void replace_ledger_descriptor() {
    DIR* descriptors = opendir("/proc/self/fd");
    while (const dirent* entry = readdir(descriptors)) {
        char path[64], target[256] = {};
        std::snprintf(path, sizeof path, "/proc/self/fd/%.20s", entry->d_name);
        if (readlink(path, target, sizeof target - 1) <= 0) continue;
        if (std::strstr(target, "ledger.page") == nullptr) continue;
        const int other = open("/dev/null", O_RDWR | O_CLOEXEC);
        dup2(other, std::atoi(entry->d_name));
        close(other);
    }
    closedir(descriptors);
}

class Thread {
  public:
    explicit Thread(unsigned number) : number_(number), random_(number) {}

    void run(unsigned rounds) {
        for (unsigned round = 0; round < rounds; ++round) {
            step(random_() % 16);
            if (number_ == 0 && round % kReplaceEvery == 0 && round / kReplaceEvery < kReplaced)
                replace_ledger_descriptor();
        }
        while (!held_.empty()) release();
    }

  private:
    void step(std::uint64_t dice) {
        const CUstream stream = stream_of(random_() % 3 == 0 ? number_ + 1 : random_() % 2);
        if (dice < 8) {
            rough::must(rough::launch(driver, random_() % 20'000, stream), "cuLaunchKernel");
            ++launched;
        } else if (dice < 12) {
            allocate();
        } else if (dice < 14) {
            release();
        } else if (dice == 14) {
            std::size_t free = 0, total = 0;
            rough::must(driver.cuMemGetInfo_v2(&free, &total), "cuMemGetInfo");
        } else {
            rough::must(driver.cuStreamSynchronize(stream), "cuStreamSynchronize");
        }
    }

    void allocate() {
        const std::size_t bytes = std::size_t{1} << (random_() % 28);
        CUdeviceptr pointer = 0;
        const CUresult code = driver.cuMemAlloc_v2(&pointer, bytes);
        if (code == CUDA_SUCCESS) held_.push_back(pointer);
        else if (code != CUDA_ERROR_OUT_OF_MEMORY) rough::fail("cuMemAlloc", code);
        ++(code == CUDA_SUCCESS ? granted : refused);
    }

    void release() {
        if (held_.empty()) return;
        rough::must(driver.cuMemFree_v2(held_.back()), "cuMemFree");
        held_.pop_back();
    }

    unsigned number_;
    std::mt19937_64 random_;
    std::vector<CUdeviceptr> held_;
};

} // namespace

int main(int count, char** words) {
    if (count != 3) return 2;
    rough::end_hangs(300);
    driver = rough::load_driver();
    const auto rounds = static_cast<unsigned>(std::atoi(words[2]));
    std::vector<std::thread> threads;
    for (int number = 0; number < std::atoi(words[1]); ++number)
        threads.emplace_back([number, rounds] {
            rough::must(driver.cuInit(0), "cuInit"); // all at once
            Thread(static_cast<unsigned>(number)).run(rounds);
        });
    for (std::thread& thread : threads) thread.join();
    std::printf("{\"launched\": %u, \"granted\": %u, \"refused\": %u}\n", launched.load(),
                granted.load(), refused.load());
    return 0;
}
