/* The floor that a start is measured against, in bare C: the least that any sandbox must do that
 * has the same namespaces, root, limits, Landlock and seccomp as ours. Not a sandbox: it checks,
 * measures and reports nothing. `bench_sandbox` compiles and runs it:
 *
 *     floor PROGRAM SCRATCH FILTER OVERLAY [KIND:GROUP-FOLDER]...
 *
 * For each byte on standard input it starts PROGRAM __byte once, waits for it, and writes one byte.
 * FILTER holds the very instructions that a sandbox of ours loads. OVERLAY is 1 for /usr through an
 * overlay with an upper layer in memory instead of a read-only bind. KIND is m, c, p (memory, cpu,
 * pids of cgroup v1) or 2 (v2).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* What a failed step is called, for the exit status says no more. */
#define TRY(call) do { if ((call) < 0) { perror(#call); _exit(125); } } while (0)

/* Far above the uids that this machine hands out, and above those of our own sessions. */
enum { SESSION = 1879048192 + 65536 + 7, INSIDE = 1000 };
/* Every right of ABI 1, which each kernel with Landlock has. */
static const uint64_t RIGHTS = 0x1fff, READING = 0xd;

static struct sock_filter filter[4096];
static struct sock_fprog program;

static void put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    TRY(fd);
    TRY(write(fd, text, strlen(text)));
    close(fd);
}

static void in_group(const char *group, const char *file, const char *text)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", group, file);
    put(path, text);
}

/* `group` begins with its kind and a colon. */
static void make_group(const char *group)
{
    TRY(mkdir(group + 2, 0755));
    if (*group == 'm')
        in_group(group + 2, "memory.limit_in_bytes", "1073741824");
    if (*group == 'c') {
        in_group(group + 2, "cpu.cfs_period_us", "100000");
        in_group(group + 2, "cpu.cfs_quota_us", "100000");
    }
    if (*group == '2') {
        in_group(group + 2, "memory.max", "1073741824");
        in_group(group + 2, "cpu.max", "100000 100000");
    }
    if (*group == 'p' || *group == '2')
        in_group(group + 2, "pids.max", "256");
}

static void bind_to(const char *from, const char *to, unsigned long flags)
{
    TRY(mount(from, to, NULL, MS_BIND | MS_REC, NULL));
    if (flags)
        TRY(mount(NULL, to, NULL, MS_BIND | MS_REMOUNT | flags, NULL));
}

static void root(const char *scratch, const char *file, int overlay)
{
    static const char *const folders[] = { "usr", "etc", "dev", "dev/pts", "proc", "tmp", "run",
        "var", "home", "workspace", ".upper", ".upper/up", ".upper/work" };
    static const char *const devices[] = { "null", "zero", "full", "random", "urandom", "tty" };
    char from[64], to[64];
    TRY(mount(NULL, "/", NULL, MS_PRIVATE | MS_REC, NULL));
    TRY(mount("tmpfs", scratch, "tmpfs", MS_NOSUID | MS_NODEV, "size=1m,nr_inodes=1024"));
    TRY(chdir(scratch));
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        TRY(mkdir(folders[i], 0755));
    if (overlay)
        TRY(mount("overlay", "usr", "overlay", MS_NOSUID | MS_NODEV,
            "lowerdir=/usr,upperdir=.upper/up,workdir=.upper/work"));
    else
        bind_to("/usr", "usr", MS_RDONLY | MS_NOSUID | MS_NODEV);
    for (int i = 0; i < 4; i++) {
        static const char *const links[] = { "bin", "sbin", "lib", "lib64" };
        snprintf(from, sizeof from, "usr/%s", links[i]);
        TRY(symlink(from, links[i]));
    }
    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
        snprintf(from, sizeof from, "/dev/%s", devices[i]);
        snprintf(to, sizeof to, "dev/%s", devices[i]);
        close(open(to, O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
        bind_to(from, to, 0);
    }
    TRY(mount("devpts", "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666"));
    TRY(mount("tmpfs", "tmp", "tmpfs", MS_NOSUID | MS_NODEV, "size=256m,nr_inodes=131072"));
    TRY(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "hidepid=2"));
    close(open("program", O_CREAT | O_WRONLY | O_CLOEXEC, 0755));
    bind_to(file, "program", 0);
    TRY(syscall(SYS_pivot_root, ".", "."));
    TRY(umount2(".", MNT_DETACH));
    TRY(mount(NULL, "/", NULL, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV, NULL));
}

static void map_ids(unsigned uid, unsigned gid)
{
    char text[64];
    put("/proc/self/setgroups", "deny");
    snprintf(text, sizeof text, "%u %u 1", INSIDE, uid);
    put("/proc/self/uid_map", text);
    snprintf(text, sizeof text, "%u %u 1", INSIDE, gid);
    put("/proc/self/gid_map", text);
}

static void capabilities(uint32_t low)
{
    struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
    struct __user_cap_data_struct sets[2] = { { low, low, 0 }, { 0, 0, 0 } };
    TRY(syscall(SYS_capset, &header, sets));
}

/* As root: from root to an own uid in a user namespace that knows no other. */
static void become_session(void)
{
    TRY(setgroups(0, NULL));
    TRY(prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0));
    TRY(setresgid(SESSION, SESSION, SESSION));
    TRY(setresuid(SESSION, SESSION, SESSION));
    capabilities(1u << CAP_SYS_ADMIN);
    TRY(prctl(PR_SET_DUMPABLE, 1, 0, 0, 0));
    TRY(unshare(CLONE_NEWUSER));
    map_ids(SESSION, SESSION);
}

static void landlock(void)
{
    struct landlock_ruleset_attr all = { .handled_access_fs = RIGHTS };
    static const char *const places[] = { "/", "/tmp", "/dev" };
    int rules = syscall(SYS_landlock_create_ruleset, &all, sizeof all, 0);
    TRY(rules);
    for (int i = 0; i < 3; i++) {
        struct landlock_path_beneath_attr rule = { i ? RIGHTS : READING, open(places[i], O_PATH) };
        TRY(rule.parent_fd);
        TRY(syscall(SYS_landlock_add_rule, rules, LANDLOCK_RULE_PATH_BENEATH, &rule, 0));
        close(rule.parent_fd);
    }
    TRY(syscall(SYS_landlock_restrict_self, rules, 0));
    close(rules);
}

static void confine(int privileged)
{
    static const struct { int what; rlim_t most; } limits[] = { { RLIMIT_FSIZE, 2147483648u },
        { RLIMIT_NOFILE, 4096 }, { RLIMIT_CORE, 0 }, { RLIMIT_NPROC, 256 } };
    struct ifreq lo = { .ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING };
    int any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    TRY(sethostname("sandbox", 7));
    TRY(ioctl(any, SIOCSIFFLAGS, &lo));
    close(any);
    TRY(unshare(CLONE_NEWCGROUP));
    for (int i = 0; i < 4; i++) {
        struct rlimit limit = { limits[i].most, limits[i].most };
        TRY(setrlimit(limits[i].what, &limit));
    }
    if (privileged)
        become_session();
    for (int i = 0; i < 64 && prctl(PR_CAPBSET_DROP, i, 0, 0, 0) == 0; i++) { }
    TRY(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0));
    TRY(prctl(PR_SET_SECUREBITS, 0xef, 0, 0, 0));
    capabilities(0);
    TRY(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    landlock();
    TRY(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program));
}

static void once(char **argv, int groups)
{
    int privileged = geteuid() == 0;
    unsigned uid = getuid(), gid = getgid();
    uint64_t flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS;
    struct clone_args args = { .flags = flags | (privileged ? 0 : CLONE_NEWUSER),
        .exit_signal = SIGCHLD };
    for (int i = 0; i < groups; i++)
        make_group(argv[5 + i]);
    pid_t pid = syscall(SYS_clone3, &args, sizeof args);
    TRY(pid);
    if (pid == 0) {
        char *words[] = { "program", "__byte", NULL }, *empty[] = { NULL };
        if (!privileged)
            map_ids(uid, gid);
        for (int i = 0; i < groups; i++)
            in_group(argv[5 + i] + 2, argv[5 + i][0] == '2' ? "cgroup.procs" : "tasks", "0");
        root(argv[2], argv[1], *argv[4] == '1');
        confine(privileged);
        TRY(execve("/program", words, empty));
    }
    TRY(waitpid(pid, NULL, 0));
    for (int i = 0; i < groups; i++)
        /* A group empties a moment after its last process. */
        for (int n = 0; rmdir(argv[5 + i] + 2) < 0 && errno == EBUSY && n < 500; n++)
            usleep(1000);
}

int main(int argc, char **argv)
{
    char order;
    if (argc < 5)
        return 2;
    int fd = open(argv[3], O_RDONLY | O_CLOEXEC);
    TRY(fd);
    ssize_t length = read(fd, filter, sizeof filter);
    TRY(length);
    close(fd);
    program = (struct sock_fprog) { length / sizeof *filter, filter };
    while (read(0, &order, 1) == 1) {
        once(argv, argc - 5);
        TRY(write(1, "e", 1));
    }
    return 0;
}
