/* Records, at each fsync, what is durable from then on and would survive a power cut.
 *
 * Loaded by LD_PRELOAD into every process of a server. POWER_CUT_ROOT is the folder to watch,
 * POWER_CUT_NOTES the folder for the records, on any file system. It has, by identity:
 *
 *   <device>-<inode>-<birth in ns>        a file: its content at its last fsync
 *   <device>-<inode>-<birth in ns>.names  a folder: "<identity> <d|f> <name>\0" for each name in it
 *
 * Nothing is really synced: only the records count. The number of an inode is reused once it is
 * free; with the time of its birth it is unique.
 */
#define _GNU_SOURCE
#include <alloca.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define IDENTITY 80

static int identify(int folder, const char *name, char *identity, mode_t *mode) {
    struct statx s;
    int flags = AT_SYMLINK_NOFOLLOW | (*name ? 0 : AT_EMPTY_PATH);
    if (statx(folder, name, flags, STATX_BASIC_STATS | STATX_BTIME, &s) || !(s.stx_mask & STATX_BTIME))
        return -1;
    snprintf(identity, IDENTITY, "%x.%x-%llx-%llx", s.stx_dev_major, s.stx_dev_minor,
             (unsigned long long)s.stx_ino,
             (unsigned long long)s.stx_btime.tv_sec * 1000000000ULL + s.stx_btime.tv_nsec);
    *mode = s.stx_mode;
    return 0;
}

static int is_watched(int fd) {
    const char *root = getenv("POWER_CUT_ROOT");
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (!root || length < 0)
        return 0;
    path[length] = 0;
    size_t n = strlen(root);
    return !strncmp(path, root, n) && (path[n] == '/' || !path[n]);
}

static int copy_content(int fd, int notes) {
    char link[64], block[1 << 16];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int from = open(link, O_RDONLY | O_CLOEXEC); /* `fd` may be for writing only */
    if (from < 0)
        return -1;
    ssize_t n;
    while ((n = read(from, block, sizeof block)) > 0)
        if (write(notes, block, n) != n)
            break;
    close(from);
    return n ? -1 : 0;
}

static int copy_names(int fd, int notes) {
    int again = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = again < 0 ? NULL : fdopendir(again);
    if (!folder)
        return -1;
    struct dirent *entry;
    while ((entry = readdir(folder))) {
        char identity[IDENTITY], line[IDENTITY + NAME_MAX + 4];
        mode_t mode;
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (identify(fd, entry->d_name, identity, &mode))
            continue; /* it has just been removed */
        int n = sprintf(line, "%s %c %s", identity, S_ISDIR(mode) ? 'd' : 'f', entry->d_name);
        if (write(notes, line, n + 1) != n + 1) {
            closedir(folder);
            return -1;
        }
    }
    closedir(folder);
    return 0;
}

/* One at a time, or an older state could take the place of a newer one. */
static int note(int fd) {
    char identity[IDENTITY], part[PATH_MAX], final[PATH_MAX];
    const char *folder = getenv("POWER_CUT_NOTES");
    mode_t mode;
    if (!folder || !is_watched(fd))
        return 0;
    if (identify(fd, "", identity, &mode)) {
        errno = ENOTSUP; /* the file system keeps no times of birth */
        return -1;
    }
    int turn = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (turn < 0)
        return -1;
    while (flock(turn, LOCK_EX) && errno == EINTR)
        ;
    snprintf(part, sizeof part, "%s/.part", folder);
    snprintf(final, sizeof final, "%s/%s%s", folder, identity, S_ISDIR(mode) ? ".names" : "");
    int notes = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int failed = notes < 0 || (S_ISDIR(mode) ? copy_names(fd, notes) : copy_content(fd, notes));
    if (notes >= 0)
        close(notes);
    failed = failed || rename(part, final);
    close(turn);
    errno = EIO;
    return failed ? -1 : 0;
}

int fsync(int fd) { return note(fd); }

int fdatasync(int fd) { return note(fd); }

/* A child that gets its own environment is watched too. This may run after vfork, so it uses only
 * the stack. */
int execve(const char *path, char *const argv[], char *const env[]) {
    static const char *const names[] = {"LD_PRELOAD", "POWER_CUT_ROOT", "POWER_CUT_NOTES"};
    int (*real)(const char *, char *const[], char *const[]) = dlsym(RTLD_NEXT, "execve");
    size_t count = 0, more = 0;
    while (env[count])
        count++;
    char **all = alloca((count + 4) * sizeof *all);
    for (size_t i = 0; i < 3; i++) {
        size_t n = strlen(names[i]), j = 0;
        const char *value = getenv(names[i]);
        while (j < count && (strncmp(env[j], names[i], n) || env[j][n] != '='))
            j++;
        if (j == count && value) {
            all[more] = alloca(n + strlen(value) + 2);
            sprintf(all[more++], "%s=%s", names[i], value);
        }
    }
    memcpy(all + more, env, (count + 1) * sizeof *all);
    return real(path, argv, all);
}
