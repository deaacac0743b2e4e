/* Children that a stop might harm at the wrong moment: some count signals with values, others go in and out of calls that
   fail with EINTR. Once a byte comes to stdin, each says what it has lost. */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { COUNTERS = 4, RECEIVERS = 4, ALL = COUNTERS + RECEIVERS, MICROS = 200 };
static volatile int *is_over;
static volatile int received, misplaced;

static void count(int signal, siginfo_t *info, void *context) {
    (void)signal; (void)context;
    misplaced += info->si_code != SI_QUEUE || info->si_value.sival_int != received;
    received++;
}
static void nothing(int signal) { (void)signal; }

static void counter(void) {
    struct sigaction action = { .sa_sigaction = count, .sa_flags = SA_SIGINFO };
    sigaction(SIGRTMIN, &action, NULL);
    signal(SIGUSR1, nothing);
    volatile int *sent = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t to = getpid(), sender = fork();
    if (sender == 0) {
        struct timespec pause = { 0, MICROS * 1000 };
        while (!*is_over) {
            union sigval value = { .sival_int = *sent };
            if (sigqueue(to, SIGRTMIN, value) == 0) ++*sent;
            nanosleep(&pause, NULL);
        }
        _exit(0);
    }
    while (!*is_over) { pause(); }
    while (waitpid(sender, NULL, 0) != sender) { }
    printf("%d sent, %d lost, %d misplaced\n", *sent > 0, *sent - received, misplaced);
}

static void receiver(void) {
    int pair[2], failed = 0, calls = 0;
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    struct timeval time = { 0, 2000 };
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    while (!*is_over) {
        char byte;
        for (volatile int at = 0; at < 100000; at++) { }
        failed += recv(pair[0], &byte, 1, 0) < 0 && errno == EINTR;
        calls++;
    }
    printf("%d received, %d failed\n", calls > 0, failed);
}

int main(void) {
    pid_t pids[ALL];
    is_over = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int at = 0; at < ALL; at++) {
        if ((pids[at] = fork()) != 0) continue;
        if (at < COUNTERS) counter(); else receiver();
        fflush(stdout);
        _exit(0);
    }
    write(1, "ready\n", 6);
    char byte;
    read(0, &byte, 1);
    *is_over = 1;
    struct timespec pause = { 0, 10000000 };
    for (int left = ALL; left > 0;) {
        for (int at = 0; at < COUNTERS; at++) { if (pids[at]) kill(pids[at], SIGUSR1); }
        pid_t ended = waitpid(-1, NULL, WNOHANG);
        if (ended <= 0) { nanosleep(&pause, NULL); continue; }
        for (int at = 0; at < ALL; at++) { if (pids[at] == ended) { pids[at] = 0; left--; } }
    }
    return 0;
}
