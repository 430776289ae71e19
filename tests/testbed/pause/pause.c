// SPDX-License-Identifier: GPL-3.0-or-later
// The process that holds a pod's namespaces: it lives until it is told to end, and, being process 1
// of pods that share their process namespace, reaps what others leave.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void on_child(int signal) {
    (void)signal;
    while (waitpid(-1, NULL, WNOHANG) > 0) {
    }
}

static void on_end(int signal) {
    (void)signal;
    _exit(0);
}

int main(void) {
    // Process 1 gets only the signals it asks for; unhandled, SIGTERM would cost every pod its
    // whole grace period.
    struct sigaction end = {.sa_handler = on_end};
    struct sigaction child = {.sa_handler = on_child, .sa_flags = SA_NOCLDSTOP | SA_RESTART};
    if (sigaction(SIGTERM, &end, NULL) || sigaction(SIGINT, &end, NULL) ||
        sigaction(SIGCHLD, &child, NULL)) {
        return 1;
    }
    for (;;) {
        pause();
    }
}
