/* Plays a service: answers every HTTP request on 127.0.0.1:PORT with {"version": VERSION}. Which version it is, and how
 * it misbehaves, stands at the end of its own file: so each version is a file with a digest of its own. */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define TRAILER 128

static char version[TRAILER], behaviour[TRAILER];

static char path[4096];

/* A path beside this program's own file. */
static void beside(const char *name)
{
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - TRAILER);
    if (length < 0)
        exit(5);
    path[length] = 0;
    strcpy(strrchr(path, '/') + 1, name);
}

static int is(const char *name) { return strcmp(behaviour, name) == 0; }

static int listen_on(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16)) {
        perror("listening");
        exit(1);
    }
    return listener;
}

static void serve(int listener)
{
    for (;;) {
        char request[4096], answer[512], body[256];
        int connection = accept(listener, NULL, NULL);
        if (connection < 0)
            continue;
        if (read(connection, request, sizeof request) < 0)
            request[0] = 0;
        int length = snprintf(body, sizeof body, "{\"version\": \"%s\"}\n", version);
        int gone = is("docroot") && access("index.html", R_OK);
        length = snprintf(answer, sizeof answer,
                          "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                          "Connection: close\r\n\r\n%s",
                          is("error500") ? "500 Internal Server Error" : gone ? "404 Not Found" : "200 OK", length, body);
        if (write(connection, answer, length) < 0)
            perror("answering");
        close(connection);
    }
}

int main(int argc, char **argv)
{
    char trailer[TRAILER + 1] = {0};
    FILE *self = fopen("/proc/self/exe", "r");
    if (!self || fseek(self, -TRAILER, SEEK_END) || fread(trailer, 1, TRAILER, self) != TRAILER ||
        sscanf(trailer, "name %*s version %s behaviour %s", version, behaviour) != 2 || argc != 2) {
        fprintf(stderr, "no trailer, or no port\n");
        return 2;
    }
    fclose(self);
    fprintf(stderr, "version %s, %s, process %d\n", version, behaviour, (int)getpid());
    if (is("crash"))
        return 1;
    if (is("deaf"))
        for (;;)
            pause();
    if (is("dies"))
        alarm(4);
    if (is("docroot")) {
        /* Serves the pages that lie beside it, from inside their directory. */
        beside("../share/www");
        if (chdir(path))
            return 3;
    }
    if (is("spawns") && fork() == 0) {
        /* What it started goes on without it. */
        setsid();
        beside("qx-vm");
        execl(path, path, argv[1], NULL);
        return 4;
    }
    if (is("turns")) {
        /* Becomes something else once it was seen. */
        sleep(2);
        execl("/bin/sleep", "sleep", "1000", NULL);
    }
    int listener = listen_on(atoi(argv[1]));
    if (is("orphan") && fork() == 0) {
        /* Outlives its parent, and keeps the port. */
        setsid();
        signal(SIGTERM, SIG_IGN);
    }
    signal(SIGPIPE, SIG_IGN);
    serve(listener);
}
