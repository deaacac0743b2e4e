// Closes everything that it can name, and goes on.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    for (int fd = 3; fd < 1024; fd++)
        close(fd);
    int ends[2];
    pipe(ends); // MARK pipe
    pid_t child = fork(); // MARK fork
    if (child == 0)
        exit(0);
    waitpid(child, NULL, 0);
    if (count > 1 && strcmp(arguments[1], "abort") == 0)
        abort();
    return 0;
}
