// SPDX-License-Identifier: Apache-2.0
//
// Many limited processes, to which somebody does what happens to processes: SIGKILL at any
// instruction, fork, exec with everything held.
//
//   storm supervise WORKERS EVENTS SEED   the one who does it; prints JSON, waits, ends all
//   storm worker SEED | brief SEED        allocates, frees and launches for ever | a little
//
// The supervisor answers for every end of a process: one that it did not order is a failure.
// Signals to a worker: USR1 fork, USR2 exec yourself, TERM hold what you have and say it, INT end.
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <vector>

#include "driver.h"

namespace {

using rough::Driver;

constexpr std::size_t kUnit = 2u << 20; // the card's granule, so that two accounts can be compared
constexpr unsigned kMostUnits = 16;
constexpr int kOrders[] = {SIGUSR1, SIGUSR2, SIGTERM, SIGINT};

volatile sig_atomic_t ordered[NSIG];
void take_order(int signal) { ordered[signal] = 1; }

sigset_t orders() {
    sigset_t set;
    sigemptyset(&set);
    for (const int signal : kOrders) sigaddset(&set, signal);
    return set;
}

// Blocked over exec: until the handlers are there an order would be the end.
void listen_to_orders() {
    for (const int signal : kOrders) {
        struct sigaction action = {};
        action.sa_handler = take_order;
        sigaction(signal, &action, nullptr); // no SA_RESTART: naps are to be interrupted
    }
    const sigset_t set = orders();
    sigprocmask(SIG_UNBLOCK, &set, nullptr);
}

void defer_orders() {
    const sigset_t set = orders();
    sigprocmask(SIG_BLOCK, &set, nullptr);
}

void become(const char* role, std::uint64_t seed) {
    defer_orders();
    const std::string text = std::to_string(seed);
    execl("/proc/self/exe", "storm", role, text.c_str(), nullptr);
    rough::fail("exec", errno);
}

// Every child must have ended by itself and well.
void collect_children(int flags) {
    int status = 0;
    while (waitpid(-1, &status, flags) > 0) {
        if (status != 0) rough::fail("a child's status", status);
    }
}

class Worker {
  public:
    explicit Worker(std::uint64_t seed) : random_(seed), driver_(rough::open_driver()) {}

    void step() {
        const std::uint64_t dice = random_() % 8;
        if (dice < 3) allocate();
        else if (dice < 5) release();
        else if (dice < 7) rough::must(rough::launch(driver_, 50'000), "cuLaunchKernel");
        else rough::must(driver_.cuCtxSynchronize(), "cuCtxSynchronize");
        usleep(static_cast<useconds_t>(random_() % 20'000));
    }

    void obey() {
        if (ordered[SIGUSR1]) fork_one();
        if (ordered[SIGUSR2]) start_anew();
        if (ordered[SIGTERM]) hold();
        if (ordered[SIGINT]) _exit(0);
        collect_children(WNOHANG);
    }

  private:
    void allocate() {
        const std::size_t bytes = kUnit * (1 + random_() % kMostUnits);
        CUdeviceptr pointer = 0;
        const CUresult code = driver_.cuMemAlloc_v2(&pointer, bytes);
        if (code == CUDA_SUCCESS) held_[pointer] = bytes;
        else if (code != CUDA_ERROR_OUT_OF_MEMORY) rough::fail("cuMemAlloc", code);
    }

    void release() {
        if (held_.empty()) return;
        const auto chosen = std::next(held_.begin(), static_cast<long>(random_() % held_.size()));
        rough::must(driver_.cuMemFree_v2(chosen->first), "cuMemFree");
        held_.erase(chosen);
    }

    // The child first calls the library as it inherited it, as programs do by mistake.
    void fork_one() {
        ordered[SIGUSR1] = 0;
        const std::uint64_t seed = random_();
        const pid_t child = fork();
        if (child < 0) rough::fail("fork", errno);
        if (child != 0) return;
        CUdeviceptr pointer = 0;
        (void)driver_.cuMemAlloc_v2(&pointer, kUnit);
        become("brief", seed);
    }

    // An order that came meanwhile must outlive the exec: pending it does, as a variable it doesn't.
    void start_anew() {
        defer_orders();
        for (const int signal : {SIGTERM, SIGINT}) {
            if (ordered[signal]) raise(signal);
        }
        become("worker", random_());
    }

    void hold() {
        if (ordered[SIGUSR2]) start_anew(); // it was ordered earlier
        ordered[SIGTERM] = 0;
        collect_children(0);
        std::uint64_t sum = 0;
        for (const auto& [pointer, bytes] : held_) sum += bytes;
        char line[64];
        const int length = std::snprintf(line, sizeof line, "%d %llu\n", getpid(),
                                         static_cast<unsigned long long>(sum));
        if (write(STDOUT_FILENO, line, static_cast<std::size_t>(length)) != length)
            rough::fail("write", errno);
        while (!ordered[SIGINT]) usleep(100'000);
    }

    std::mt19937_64 random_;
    Driver driver_;
    std::map<CUdeviceptr, std::size_t> held_;
};

int work(std::uint64_t seed, unsigned steps) {
    Worker worker(seed);
    listen_to_orders();
    for (unsigned step = 0; steps == 0 || step < steps; ++step) {
        worker.obey();
        worker.step();
    }
    return 0;
}

unsigned count_children() {
    unsigned found = 0;
    DIR* processes = opendir("/proc");
    while (const dirent* entry = readdir(processes)) {
        std::ifstream file(std::string("/proc/") + entry->d_name + "/stat");
        std::string text;
        if (entry->d_name[0] < '0' || entry->d_name[0] > '9' || !std::getline(file, text)) continue;
        found += std::strtol(text.c_str() + text.rfind(')') + 4, nullptr, 10) == getpid();
    }
    closedir(processes);
    return found;
}

class Supervisor {
  public:
    Supervisor(unsigned workers, std::uint64_t seed) : random_(seed), workers_(workers) {
        prctl(PR_SET_CHILD_SUBREAPER, 1);
        defer_orders(); // the workers inherit it
        if (pipe(says_) != 0) rough::fail("pipe", errno);
        for (pid_t& worker : workers_) worker = start();
    }

    void storm(unsigned events) {
        for (unsigned event = 0; event < events; ++event) {
            usleep(static_cast<useconds_t>(random_() % 4000));
            pid_t& worker = workers_[random_() % workers_.size()];
            const std::uint64_t kind = random_() % 3;
            if (kind == 0) {
                end(worker, SIGKILL);
                worker = start();
            } else {
                kill(worker, kind == 1 ? SIGUSR1 : SIGUSR2);
            }
            ++done_[kind];
            collect_orphans();
        }
    }

    void hold() {
        for (const pid_t worker : workers_) kill(worker, SIGTERM);
        FILE* lines = fdopen(says_[0], "r");
        std::printf("{\"kills\": %u, \"forks\": %u, \"execs\": %u, \"held\": {", done_[0], done_[1],
                    done_[2]);
        for (std::size_t line = 0; line < workers_.size(); ++line) {
            int pid = 0;
            unsigned long long bytes = 0;
            if (std::fscanf(lines, "%d %llu", &pid, &bytes) != 2) rough::fail("a worker's word", 0);
            std::printf("%s\"%d\": %llu", line == 0 ? "" : ", ", pid, bytes);
        }
        while (count_children() > workers_.size()) {
            collect_orphans();
            usleep(5000);
        }
        std::printf("}}\n");
        std::fflush(stdout);
    }

    // Half of them end by themselves with all they hold.
    void end_all() {
        for (std::size_t index = 0; index < workers_.size(); ++index)
            end(workers_[index], index % 2 == 0 ? SIGKILL : SIGINT);
    }

  private:
    pid_t start() {
        const std::uint64_t seed = random_();
        const pid_t self = getpid();
        const pid_t child = fork();
        if (child < 0) rough::fail("fork", errno);
        if (child != 0) return child;
        rough::die_with(self);
        dup2(says_[1], STDOUT_FILENO);
        close(says_[0]);
        close(says_[1]);
        become("worker", seed);
        return 0;
    }

    void end(pid_t worker, int signal) {
        kill(worker, signal);
        int status = 0;
        if (waitpid(worker, &status, 0) != worker) rough::fail("waitpid", errno);
        const bool as_ordered = signal == SIGKILL ? WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL
                                                  : status == 0;
        if (!as_ordered) rough::fail("a worker's status", status);
    }

    // Children of workers that were killed come to us; each ends by itself and well. A worker among
    // those that ended was ended by somebody else than us.
    void collect_orphans() {
        int status = 0;
        for (;;) {
            const pid_t gone = waitpid(-1, &status, WNOHANG);
            if (gone <= 0) return;
            const std::set<pid_t> known(workers_.begin(), workers_.end());
            if (status != 0 || known.count(gone) != 0) rough::fail("a process ended with", status);
        }
    }

    std::mt19937_64 random_;
    std::vector<pid_t> workers_;
    int says_[2] = {};
    unsigned done_[3] = {};
};

int supervise(unsigned workers, unsigned events, std::uint64_t seed) {
    rough::end_hangs(120 + events / 10);
    Supervisor supervisor(workers, seed);
    supervisor.storm(events);
    supervisor.hold();
    (void)std::getchar();
    supervisor.end_all();
    return 0;
}

} // namespace

int main(int count, char** words) {
    const std::string role = count > 1 ? words[1] : "";
    const auto number = [&](int index) { return std::strtoull(words[index], nullptr, 10); };
    if (role == "worker" && count == 3) return work(number(2), 0);
    if (role == "brief" && count == 3) return work(number(2), 3);
    if (role == "supervise" && count == 5)
        return supervise(static_cast<unsigned>(number(2)), static_cast<unsigned>(number(3)), number(4));
    std::fprintf(stderr, "usage: storm supervise WORKERS EVENTS SEED | worker SEED | brief SEED\n");
    return 2;
}
