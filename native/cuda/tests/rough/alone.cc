// SPDX-License-Identifier: Apache-2.0
//
// alone SCENARIO: one process that treats itself badly, on the one-page driver. Prints JSON.
#include <fcntl.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <map>
#include <string>

#include "driver.h"

namespace {

using rough::Driver;
using rough::launch;
using rough::must;

constexpr std::uint64_t kKernelNs = 1'000'000;
constexpr std::size_t kMiB = 1u << 20;

Driver driver;
std::atomic<int> launches{0};

int allocate(std::size_t bytes) {
    CUdeviceptr pointer = 0;
    return driver.cuMemAlloc_v2(&pointer, bytes);
}

void* in_thread(void* (*body)(void*), std::size_t stack_bytes = 0) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    if (stack_bytes != 0 && pthread_attr_setstacksize(&attributes, stack_bytes) != 0)
        rough::fail("pthread_attr_setstacksize", 0);
    pthread_t thread;
    void* result = nullptr;
    if (pthread_create(&thread, &attributes, body, nullptr) != 0) rough::fail("pthread_create", 0);
    pthread_join(thread, &result);
    return result;
}

// The first hooked call, in a thread that ends at its next cancellation point.
void* cancelled_init(void*) {
    pthread_cancel(pthread_self());
    must(driver.cuInit(0), "cuInit");
    pthread_testcancel();
    return nullptr;
}

void cancel_init() {
    driver = rough::load_driver();
    const bool cancelled = in_thread(cancelled_init) == PTHREAD_CANCELED;
    std::printf("{\"cancelled\": %d, \"over\": %d}\n", cancelled, allocate(3072 * kMiB + 1));
}

void* launch_for_ever(void*) {
    for (;;) {
        must(launch(driver, kKernelNs), "cuLaunchKernel");
        ++launches;
        pthread_testcancel();
    }
}

// Threads that end while they are held back; the stream must be usable afterwards.
void cancel_throttled() {
    driver = rough::open_driver();
    for (int round = 0; round < 5; ++round) {
        pthread_t thread;
        void* result = nullptr;
        if (pthread_create(&thread, nullptr, launch_for_ever, nullptr) != 0) rough::fail("pthread_create", 0);
        const int before = launches;
        while (launches < before + 3) usleep(1000);
        pthread_cancel(thread);
        pthread_join(thread, &result);
        if (result != PTHREAD_CANCELED) rough::fail("not cancelled", 0);
    }
    for (int more = 0; more < 10; ++more) {
        must(launch(driver, kKernelNs), "cuLaunchKernel");
        ++launches;
    }
    must(driver.cuCtxSynchronize(), "cuCtxSynchronize");
    std::printf("{\"launches\": %d}\n", launches.load());
}

std::atomic<bool> held_back_to_its_end{false};

void* launch_with_cancel_pending(void*) {
    for (int more = 0; more < 20; ++more) must(launch(driver, kKernelNs), "cuLaunchKernel"); // into debt
    pthread_cancel(pthread_self());
    for (int more = 0; more < 5; ++more) must(launch(driver, kKernelNs), "cuLaunchKernel");
    held_back_to_its_end = true;
    pthread_testcancel();
    return nullptr;
}

// Natively a launch is no cancellation point, so a launch that is held back is none either.
void cancel_pending() {
    driver = rough::open_driver();
    const bool cancelled = in_thread(launch_with_cancel_pending) == PTHREAD_CANCELED;
    std::printf("{\"cancelled\": %d, \"returned\": %d}\n", cancelled, held_back_to_its_end.load());
}

void* whole_life(void*) {
    driver = rough::open_driver();
    if (allocate(kMiB) != 0) rough::fail("cuMemAlloc", 0);
    for (int more = 0; more < 60; ++more) {
        must(launch(driver, kKernelNs), "cuLaunchKernel");
        ++launches;
    }
    must(driver.cuCtxSynchronize(), "cuCtxSynchronize");
    return nullptr;
}

void small_stack() {
    (void)in_thread(whole_life, 16 * 1024);
    std::printf("{\"launches\": %d, \"over\": %d}\n", launches.load(), allocate(3072 * kMiB));
}

volatile sig_atomic_t signals_seen = 0;
void count_signal(int) { ++signals_seen; }

// Timer signals a thousand times a second and children that end, handled on a stack of their own.
void signals() {
    static char other_stack[64 * 1024];
    const stack_t stack = {other_stack, 0, sizeof other_stack};
    sigaltstack(&stack, nullptr);
    struct sigaction action = {};
    action.sa_handler = count_signal;
    action.sa_flags = SA_ONSTACK; // no SA_RESTART
    for (const int signal : {SIGALRM, SIGPROF, SIGCHLD}) sigaction(signal, &action, nullptr);
    const itimerval every = {{0, 1000}, {0, 1000}};
    setitimer(ITIMER_REAL, &every, nullptr);
    setitimer(ITIMER_PROF, &every, nullptr);
    driver = rough::open_driver();
    for (int more = 0; more < 100; ++more) {
        if (more % 25 == 0 && fork() == 0) _exit(0);
        must(launch(driver, kKernelNs), "cuLaunchKernel");
        ++launches;
    }
    while (wait(nullptr) > 0 || errno == EINTR) {
    }
    std::printf("{\"launches\": %d, \"signals\": %d}\n", launches.load(), static_cast<int>(signals_seen));
}

void limit(int what, rlim_t value) {
    rlimit both = {};
    getrlimit(static_cast<__rlimit_resource_t>(what), &both);
    both.rlim_cur = value == RLIM_INFINITY ? both.rlim_max : value;
    if (setrlimit(static_cast<__rlimit_resource_t>(what), &both) != 0) rough::fail("setrlimit", what);
}

// No descriptor is free at the first call; later some are.
void no_descriptors() {
    driver = rough::load_driver();
    limit(RLIMIT_NOFILE, 0);
    const int early = driver.cuInit(0);
    limit(RLIMIT_NOFILE, RLIM_INFINITY);
    std::printf("{\"init\": %d, \"over\": %d}\n", early, allocate(3072 * kMiB + 1));
}

std::size_t address_space() {
    std::ifstream file("/proc/self/statm");
    std::size_t pages = 0;
    file >> pages;
    return pages * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

// No memory of the host, locked or mapped, while it launches: what can't be measured runs; once there
// is memory again, it is measured.
void no_memory() {
    limit(RLIMIT_MEMLOCK, 0);
    driver = rough::open_driver();
    limit(RLIMIT_AS, address_space());
    int launched = 0;
    for (int more = 0; more < 20; ++more) launched += launch(driver, 1000) == 0;
    limit(RLIMIT_AS, RLIM_INFINITY);
    for (int more = 0; more < 20; ++more) launched += launch(driver, 1000) == 0;
    std::printf("{\"launched\": %d, \"over\": %d}\n", launched, allocate(3072 * kMiB + 1));
}

// No room to remember an allocation (see hostile_libc.c).
void no_tables() {
    driver = rough::open_driver();
    const int refused = allocate(1024 * kMiB);
    setenv("FAIL_TABLES", "", 1);
    std::printf("{\"refused\": %d, \"granted\": %d}\n", refused, allocate(3072 * kMiB));
}

// A spawned program closes its descriptors; that must not end our locks.
void vfork_exec() {
    driver = rough::open_driver();
    const int held = allocate(2048 * kMiB);
    for (int more = 0; more < 20; ++more) {
        const pid_t child = vfork();
        if (child == 0) {
            execl("/bin/true", "true", nullptr);
            _exit(99);
        }
        int status = 0;
        waitpid(child, &status, 0);
        if (status != 0) rough::fail("true", status);
    }
    std::printf("{\"held\": %d}\n", held);
    std::fflush(stdout);
    (void)std::getchar();
}

void* init_alone(void*) {
    must(driver.cuInit(0), "cuInit");
    return nullptr;
}

// Forks while another thread is in the middle of the first call (see hostile_libc.c).
void fork_in_init() {
    driver = rough::load_driver();
    pthread_t thread;
    if (pthread_create(&thread, nullptr, init_alone, nullptr) != 0) rough::fail("pthread_create", 0);
    while (access(std::getenv("SLOW_OPEN_SAYS"), F_OK) != 0) usleep(1000);
    const pid_t child = fork();
    if (child == 0) {
        rough::end_hangs(30);
        setenv("SLOW_OPEN_SAYS", "", 1);
        _exit(allocate(3072 * kMiB + 1));
    }
    int status = 0;
    waitpid(child, &status, 0);
    std::printf("{\"child\": %d}\n", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
    std::fflush(stdout);
    _exit(0); // the slow thread is left where it is
}

// What the driver answers before, while and after $CARD_LOST is there with the word in $LOST_WHAT.
void lost_card() {
    driver = rough::open_driver();
    std::map<int, int> answers[3];
    for (int phase = 0; phase < 3; ++phase) {
        if (phase == 1) std::ofstream(std::getenv("CARD_LOST")) << std::getenv("LOST_WHAT") << "\n";
        if (phase == 2) unlink(std::getenv("CARD_LOST"));
        for (int more = 0; more < 100; ++more) ++answers[phase][launch(driver, kKernelNs / 10)];
        ++answers[phase][driver.cuStreamSynchronize(nullptr)];
        ++answers[phase][allocate(kMiB)];
    }
    std::printf("{\"before\": %d, \"errors\": %d, \"fine\": %d, \"after\": %d, \"over\": %d}\n", answers[0][0],
                answers[1][46], answers[1][0], answers[2][0], allocate(3072 * kMiB));
}

// Launches until told to end, and says how often.
void serve() {
    driver = rough::open_driver();
    const int first = allocate(kMiB);
    std::printf("{\"first\": %d}\n", first);
    std::fflush(stdout);
    pthread_t thread;
    if (pthread_create(&thread, nullptr, launch_for_ever, nullptr) != 0) rough::fail("pthread_create", 0);
    (void)std::getchar();
    pthread_cancel(thread);
    pthread_join(thread, nullptr);
    std::size_t free = 0, total = 0;
    must(driver.cuMemGetInfo_v2(&free, &total), "cuMemGetInfo");
    std::printf("{\"launches\": %d, \"total\": %zu}\n", launches.load(), total);
}

} // namespace

int main(int count, char** words) {
    const std::map<std::string, void (*)()> scenarios = {
        {"cancel_init", cancel_init}, {"cancel_throttled", cancel_throttled},
        {"small_stack", small_stack}, {"signals", signals},
        {"no_descriptors", no_descriptors}, {"no_memory", no_memory}, {"no_tables", no_tables},
        {"vfork_exec", vfork_exec}, {"fork_in_init", fork_in_init},
        {"serve", serve}, {"cancel_pending", cancel_pending}, {"lost_card", lost_card},
    };
    const auto found = count == 2 ? scenarios.find(words[1]) : scenarios.end();
    if (found == scenarios.end()) return 2;
    if (found->first != "signals") rough::end_hangs(100);
    found->second();
    return 0;
}
