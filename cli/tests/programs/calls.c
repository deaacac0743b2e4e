// Each call of which the line has a mark is to be recorded with that line.
#define _GNU_SOURCE
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <pty.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

static void *work(void *nothing)
{
    pthread_setname_np(pthread_self(), "worker-7");
    pid_t child = fork(); // MARK fork
    if (child == 0) {
        int inner[2];
        _exit(pipe(inner)); // MARK pipe
    }
    waitpid(child, NULL, 0);
    return nothing;
}

static void sockets(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET };
    socklen_t length = sizeof address;
    int server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0); // MARK socket
    bind(server, (struct sockaddr *)&address, length);
    listen(server, 2);
    getsockname(server, (struct sockaddr *)&address, &length);
    for (int round = 0; round < 2; round++)
        connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&address, length); // MARK socket
    accept(server, NULL, NULL); // MARK accept
    accept4(server, NULL, NULL, SOCK_CLOEXEC); // MARK accept4
    int pair[2];
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair); // MARK socketpair
}

int main(void)
{
    pthread_t thread;
    pthread_create(&thread, NULL, work, NULL);
    pthread_join(thread, NULL);
    int ends[2];
    pipe2(ends, O_CLOEXEC); // MARK pipe2
    eventfd(0, EFD_CLOEXEC); // MARK eventfd
    epoll_create1(EPOLL_CLOEXEC); // MARK epoll_create1
    timerfd_create(CLOCK_MONOTONIC, 0); // MARK timerfd_create
    memfd_create("name", MFD_CLOEXEC); // MARK memfd_create
    inotify_init1(0); // MARK inotify_init1
    sockets();
    pclose(popen("exit 3", "r")); // MARK popen
    system("exit 4"); // MARK system
    char *arguments[] = { "true", NULL };
    pid_t child = vfork();
    if (child == 0) {
        execvp("true", arguments); // MARK vfork
        _exit(1);
    }
    waitpid(child, NULL, 0);
    int terminal;
    child = forkpty(&terminal, NULL, NULL, NULL); // MARK forkpty
    if (child == 0)
        _exit(0);
    waitpid(child, NULL, 0);
    child = fork(); // MARK fork
    if (child == 0) {
        daemon(0, 0); // MARK daemon
        _exit(0);
    }
    waitpid(child, NULL, 0);
    exit(7); // MARK exit
}
