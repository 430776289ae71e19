// SPDX-License-Identifier: Apache-2.0
//
// Preloaded by tests. With $SLOW_OPEN_SAYS, opening a config page creates that file and then takes for
// ever; with $FAIL_TABLES there is no memory for tables of 64 entries and more.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int set(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0';
}

void *calloc(size_t count, size_t bytes)
{
    void *memory = NULL;
    if (!(count >= 64 && bytes >= 24 && bytes <= 64 && set("FAIL_TABLES")))
        memory = malloc(count * bytes);
    return memory == NULL ? NULL : memset(memory, 0, count * bytes);
}

int open(const char *path, int flags, ...)
{
    int (*real)(const char *, int, ...) = (int (*)(const char *, int, ...))dlsym(RTLD_NEXT, "open");
    va_list arguments;
    va_start(arguments, flags);
    const int mode = flags & O_CREAT ? va_arg(arguments, int) : 0;
    va_end(arguments);
    if (set("SLOW_OPEN_SAYS") && strstr(path, "config.page") != NULL) {
        close(real(getenv("SLOW_OPEN_SAYS"), O_CREAT | O_WRONLY, 0600));
        for (;;)
            pause();
    }
    return real(path, flags, mode);
}
