/* Runs a program as a thoughtless caller might: all signals ignored that can be, and blocked; umask 077; descriptors left
 * open, one with a lock; a working directory that is gone; hardly any priority; nothing on the standard input. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char directory[] = "/tmp/qx-gone-XXXXXX";
    if (argc < 3 || !mkdtemp(directory) || chdir(directory) || rmdir(directory))
        return 125;
    umask(077);
    for (int number = 0; number < 20; number++) {
        int lock = open(argv[1], O_RDWR | O_CREAT, 0600);
        if (lock < 0 || (number == 0 && flock(lock, LOCK_EX)))
            return 124;
    }
    close(0);
    errno = 0;
    if (nice(9) == -1 && errno)
        return 123;
    for (int number = 1; number < NSIG; number++)
        if (number != SIGILL && number != SIGFPE && number != SIGSEGV && number != SIGHUP)
            signal(number, SIG_IGN);
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, NULL);
    execv(argv[2], argv + 2);
    perror(argv[2]);
    return 122;
}
