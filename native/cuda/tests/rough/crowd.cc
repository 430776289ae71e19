// SPDX-License-Identifier: Apache-2.0
//
// crowd PROCESSES BYTES: that many processes that do the same at the same moment. All start the
// driver and take BYTES; then one line says what each was answered. After a line on stdin each
// launches twenty kernels, and ends.
#include <sys/wait.h>
#include <unistd.h>

#include <vector>

#include "driver.h"

namespace {

constexpr int kLaunches = 20;
constexpr std::uint64_t kKernelNs = 500'000;

// A pipe that nobody writes to: reading ends for all at once when the writer closes it.
struct Barrier {
    int ends[2];
    Barrier() {
        if (pipe(ends) != 0) rough::fail("pipe", 0);
    }
    void wait() {
        char byte = 0;
        close(ends[1]);
        (void)!read(ends[0], &byte, 1);
    }
    void open() { close(ends[1]); }
};

void take_part(pid_t parent, Barrier& start, Barrier& finish, int answers, std::size_t bytes) {
    rough::die_with(parent);
    close(finish.ends[1]);
    start.wait();
    rough::Driver driver = rough::open_driver();
    CUdeviceptr pointer = 0;
    const int code = bytes == 0 ? 0 : driver.cuMemAlloc_v2(&pointer, bytes);
    if (write(answers, &code, sizeof code) != sizeof code) rough::fail("write", 0);
    char byte = 0;
    (void)!read(finish.ends[0], &byte, 1);
    for (int launch = 0; launch < kLaunches && bytes != 0; ++launch)
        rough::must(rough::launch(driver, kKernelNs), "cuLaunchKernel");
    rough::must(driver.cuCtxSynchronize(), "cuCtxSynchronize");
    _exit(0);
}

} // namespace

int main(int count, char** words) {
    if (count != 3) return 2;
    rough::end_hangs(120);
    const int processes = std::atoi(words[1]);
    const std::size_t bytes = std::strtoull(words[2], nullptr, 10);
    Barrier start, finish;
    int answers[2];
    if (pipe(answers) != 0) rough::fail("pipe", 0);
    std::vector<pid_t> all;
    const pid_t self = getpid();
    for (int process = 0; process < processes; ++process) {
        all.push_back(fork());
        if (all.back() == 0) take_part(self, start, finish, answers[1], bytes);
    }
    start.open();
    std::printf("{\"granted\": [");
    for (int process = 0; process < processes; ++process) {
        int code = 0;
        if (read(answers[0], &code, sizeof code) != sizeof code) rough::fail("read", 0);
        std::printf("%s%d", process == 0 ? "" : ", ", code);
    }
    std::printf("]}\n");
    std::fflush(stdout);
    (void)std::getchar();
    finish.open();
    for (const pid_t child : all) {
        int status = 0;
        if (waitpid(child, &status, 0) != child || status != 0) rough::fail("a process ended with", status);
    }
    return 0;
}
