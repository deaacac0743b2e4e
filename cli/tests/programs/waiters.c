/* Children that wait, each in another call. Once a byte comes to stdin what they wait for comes too, and each says what its
   call has returned. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/futex.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MILLIS = 1500, PART = 3, WHOLE = 10, MUCH = 1 << 20 };
static char much[MUCH];
static int ends[2], pair[2], full[2], sending[2], parted[2], event, never, semaphores, queue, lock_of;
static int *word;
static volatile int *runs;
static sigset_t usr1;
static const struct timespec limit = { MILLIS / 1000, MILLIS % 1000 * 1000000 };

static long w_read(void) { char byte; return read(ends[0], &byte, 1); }
static long w_poll(void) { struct pollfd fd = { ends[0], POLLIN, 0 }; return poll(&fd, 1, -1); }
static long w_select(void) {
    fd_set set; FD_ZERO(&set); FD_SET(ends[0], &set);
    return select(ends[0] + 1, &set, NULL, NULL, NULL);
}
static long polled(int fd, int millis) {
    int epoll = epoll_create1(0);
    struct epoll_event in = { EPOLLIN, { 0 } };
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &in);
    return epoll_wait(epoll, &in, 1, millis);
}
static long w_epoll(void) { return polled(ends[0], -1); }
static long w_futex(void) {
    while (!*word && syscall(SYS_futex, word, FUTEX_WAIT, 0, NULL, NULL, 0) == 0) { }
    return *word ? 0 : -1;
}
static long w_eventfd(void) { uint64_t count; return read(event, &count, sizeof count); }
static long w_sigwait(void) { return sigwaitinfo(&usr1, NULL); }
static long w_recv(void) { char byte; return recv(pair[0], &byte, 1, MSG_PEEK); }
static long w_recv_limited(void) {
    char byte; struct timeval time = { 60, 0 };
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
    return recv(pair[0], &byte, 1, MSG_PEEK);
}
static long w_semop(void) { struct sembuf down = { 0, -1, 0 }; return semop(semaphores, &down, 1); }
static long w_msgrcv(void) { struct { long kind; char text; } message; return msgrcv(queue, &message, 1, 0, 0); }
static long w_flock(void) { return flock(open("lock", O_RDWR), LOCK_EX); }
static long w_wait(void) {
    pid_t child = fork();
    if (child == 0) { char byte; read(ends[0], &byte, 1); _exit(7); }
    int status; return waitpid(-1, &status, 0) == child ? WEXITSTATUS(status) : -1;
}
static long w_stopped(void) { return raise(SIGSTOP); }
static long w_runs(void) { while (*runs) { } return 0; }
/* These have transferred a part when they are looked at. */
static long w_write(void) { return write(full[1], much, MUCH); }
static long w_send(void) { return send(sending[1], much, MUCH, 0); }
static long w_recv_all(void) { char bytes[WHOLE]; return recv(parted[0], bytes, WHOLE, MSG_WAITALL); }
/* These end by themselves. */
/* A filter that kills for `restart_syscall`, which is allowed by others with the call that it continues. */
static long w_filtered(void) {
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_restart_syscall, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0) return -1;
    return clock_nanosleep(CLOCK_MONOTONIC, 0, &limit, NULL);
}
static long w_nanosleep(void) { return nanosleep(&limit, NULL); }
static long w_poll_timed(void) { return poll(NULL, 0, MILLIS); }
static long w_epoll_timed(void) { return polled(never, MILLIS); }
static long w_sigwait_timed(void) {
    sigset_t other; sigemptyset(&other); sigaddset(&other, SIGUSR2); sigprocmask(SIG_BLOCK, &other, NULL);
    return sigtimedwait(&other, NULL, &limit);
}

#define W(name) { #name, w_##name }
static const struct { const char *name; long (*wait)(void); } all[] = {
    W(read), W(poll), W(select), W(epoll), W(futex), W(eventfd), W(sigwait), W(recv), W(recv_limited), W(semop), W(msgrcv),
    W(flock), W(wait), W(stopped), W(runs), W(nanosleep), W(poll_timed), W(epoll_timed), W(sigwait_timed),
    W(write), W(send), W(recv_all), W(filtered),
};
enum { COUNT = sizeof all / sizeof *all };

static void start(pid_t *pids) {
    for (int at = 0; at < COUNT; at++) {
        if ((pids[at] = fork()) != 0) continue;
        struct timespec begin, end;
        clock_gettime(CLOCK_MONOTONIC, &begin);
        errno = 0;
        long result = all[at].wait();
        int error = errno;
        clock_gettime(CLOCK_MONOTONIC, &end);
        long millis = (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000;
        char line[200];
        int length = snprintf(line, sizeof line, "%s returned %ld%s%s%s\n", all[at].name, result, result < 0 ? " " : "",
                              result >= 0 ? "" : error == EINTR ? "EINTR" : error == EAGAIN ? "EAGAIN" : strerror(error),
                              strstr(all[at].name, "timed") && millis + 1 < MILLIS ? " early" : "");
        write(1, line, length);
        _exit(0);
    }
}

int main(void) {
    pid_t pids[COUNT];
    pipe(ends);
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    pipe(full);
    socketpair(AF_UNIX, SOCK_STREAM, 0, sending);
    socketpair(AF_UNIX, SOCK_STREAM, 0, parted);
    write(parted[1], much, PART);
    event = eventfd(0, EFD_SEMAPHORE);
    /* Its time has to pass, however soon the others are woken. */
    never = eventfd(0, 0);
    semaphores = semget(IPC_PRIVATE, 1, 0600);
    queue = msgget(IPC_PRIVATE, 0600);
    lock_of = open("lock", O_CREAT | O_RDWR | O_CLOEXEC, 0600);
    flock(lock_of, LOCK_EX);
    word = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    runs = word + 1;
    *runs = 1;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    sigprocmask(SIG_BLOCK, &usr1, NULL);
    start(pids);
    for (int at = 0; at < COUNT; at++) { printf("%s %d\n", all[at].name, pids[at]); }
    printf("ready\n");
    fflush(stdout);
    char byte;
    read(0, &byte, 1);
    *word = 1;
    *runs = 0;
    syscall(SYS_futex, word, FUTEX_WAKE, 100, NULL, NULL, 0);
    /* Two of them read a byte, the others wait for that there is one. */
    write(ends[1], "xxxx", 4);
    write(pair[1], "x", 1);
    write(parted[1], much, WHOLE - PART);
    int from[2] = { full[0], sending[0] };
    pid_t drains[2];
    for (int at = 0; at < 2; at++) {
        if ((drains[at] = fork()) == 0) { while (read(from[at], much, MUCH) > 0) { } _exit(0); }
    }
    uint64_t one = 1;
    write(event, &one, sizeof one);
    struct sembuf up = { 0, 1, 0 };
    semop(semaphores, &up, 1);
    struct { long kind; char text; } message = { 1, 'x' };
    msgsnd(queue, &message, 1, 0);
    flock(lock_of, LOCK_UN);
    for (int at = 0; at < COUNT; at++) {
        if (!strcmp(all[at].name, "sigwait")) kill(pids[at], SIGUSR1);
        if (!strcmp(all[at].name, "stopped")) kill(pids[at], SIGCONT);
    }
    for (int at = 0; at < COUNT; at++) { waitpid(pids[at], NULL, 0); }
    for (int at = 0; at < 2; at++) { kill(drains[at], SIGKILL); waitpid(drains[at], NULL, 0); }
    semctl(semaphores, 0, IPC_RMID);
    msgctl(queue, IPC_RMID, NULL);
    return 0;
}
