/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * fault-at: runs a program, and has its Nth system call (of those asked for, over all its threads) go wrong.
 *
 *     fault-at --when=N [--calls=NAME,...] [--path=TEXT] [--onwards] [--report=FILE] WHAT -- COMMAND [ARGUMENT...]
 *
 *     --kill           the program is killed before that call is carried out
 *     --error=NUMBER   the call is not carried out and returns this errno
 *     --short          the call transfers half of what it was asked for: pread64, pwrite64, preadv, pwritev, and the first
 *                      request of an io_submit, whose completion then tells of half
 *     --complete       the first request of an io_submit is given memory that is not there: its completion tells an error
 *     --nothing        nothing: only counts (as does --when=0)
 *
 *     --calls          those counted; all when left out
 *     --path           only calls on a file whose path has TEXT in it: by descriptor or name; of io_submit, by its first request
 *     --onwards        so do all that follow (not with --kill)
 *     --without-aio    there is no libaio besides: io_setup says ENOSYS, so that all disk I/O is done by the calls above
 *     --report         FILE gets one line: how many were counted, how many went wrong, and the name of the first that did
 *
 * It ends as the program does (128 and the signal's number when a signal ended that); SIGTERM and SIGINT are passed on. It
 * does what strace's --inject does, and what that cannot: it counts over all threads, it knows what an io_submit is for,
 * and completions fall short or fail.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <libaio.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#if !defined(__x86_64__)
int main(void)
{
	(void)fprintf(stderr, "fault-at: knows the registers of x86-64 only\n");
	return 77;
}
#else

enum what { KILL, ERROR, SHORT, COMPLETE, NOTHING };
enum argument { NONE, DESCRIPTOR, PATH_FIRST, PATH_SECOND, REQUESTS };

static const struct call {
	const char *name;
	long number;
	enum argument argument; /* what tells the file */
} calls[] = {
	{ "read", SYS_read, DESCRIPTOR },
	{ "write", SYS_write, DESCRIPTOR },
	{ "close", SYS_close, DESCRIPTOR },
	{ "fstat", SYS_fstat, DESCRIPTOR },
	{ "ioctl", SYS_ioctl, DESCRIPTOR },
	{ "pread64", SYS_pread64, DESCRIPTOR },
	{ "pwrite64", SYS_pwrite64, DESCRIPTOR },
	{ "preadv", SYS_preadv, DESCRIPTOR },
	{ "pwritev", SYS_pwritev, DESCRIPTOR },
	{ "fsync", SYS_fsync, DESCRIPTOR },
	{ "fdatasync", SYS_fdatasync, DESCRIPTOR },
	{ "fallocate", SYS_fallocate, DESCRIPTOR },
	{ "ftruncate", SYS_ftruncate, DESCRIPTOR },
	{ "flock", SYS_flock, DESCRIPTOR },
	{ "sendmsg", SYS_sendmsg, DESCRIPTOR },
	{ "recvmsg", SYS_recvmsg, DESCRIPTOR },
	{ "open", SYS_open, PATH_FIRST },
	{ "openat", SYS_openat, PATH_SECOND },
	{ "unlink", SYS_unlink, PATH_FIRST },
	{ "unlinkat", SYS_unlinkat, PATH_SECOND },
	{ "mkdir", SYS_mkdir, PATH_FIRST },
	{ "rename", SYS_rename, PATH_FIRST },
	{ "renameat", SYS_renameat, PATH_SECOND },
	{ "linkat", SYS_linkat, PATH_SECOND },
	{ "io_submit", SYS_io_submit, REQUESTS },
	{ "io_setup", SYS_io_setup, NONE },
	{ "io_getevents", SYS_io_getevents, NONE },
	{ "eventfd2", SYS_eventfd2, NONE },
	{ "accept4", SYS_accept4, NONE },
	{ "mmap", SYS_mmap, NONE },
	{ "epoll_wait", SYS_epoll_wait, NONE },
	{ "epoll_pwait2", SYS_epoll_pwait2, NONE },
	{ "poll", SYS_poll, NONE },
};

#define CALLS (sizeof(calls) / sizeof(calls[0]))
#define THREADS_MAX 64u

/* A word of the program's memory that was changed for the time of a call. */
struct patch {
	unsigned long long address; /* 0: none */
	long was;
};

struct thread {
	pid_t id; /* 0: free */
	long error; /* what the call it is in shall return; 0: as it will */
	struct patch patch;
};

static struct {
	enum what what;
	long error;
	unsigned long when;
	bool onwards, without_aio;
	bool counted[CALLS];
	bool all;
	const char *path, *report;
} options = { .what = NOTHING, .all = true };

static struct thread threads[THREADS_MAX];
static unsigned long count, fired;
static const char *first_fired = "-";
static volatile pid_t program;

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	(void)fputs("fault-at: ", stderr);
	(void)vfprintf(stderr, format, arguments);
	(void)fputc('\n', stderr);
	va_end(arguments);
	exit(125);
}

static struct thread *thread_of(pid_t id)
{
	struct thread *free_one = NULL;

	for (unsigned i = 0; i < THREADS_MAX; i++) {
		if (threads[i].id == id)
			return &threads[i];
		if (threads[i].id == 0 && free_one == NULL)
			free_one = &threads[i];
	}
	if (free_one == NULL)
		die("more than %u threads", THREADS_MAX);
	*free_one = (struct thread){ .id = id };
	return free_one;
}

static const struct call *call_of(unsigned long long number)
{
	for (unsigned i = 0; i < CALLS; i++)
		if ((unsigned long long)calls[i].number == number)
			return &calls[i];
	return NULL;
}

/* ---- the program's memory ---- */

static bool peek(pid_t id, unsigned long long address, void *out, size_t bytes)
{
	struct iovec here = { .iov_base = out, .iov_len = bytes };
	struct iovec there = { .iov_base = (void *)(uintptr_t)address, .iov_len = bytes };

	return process_vm_readv(id, &here, 1, &there, 1, 0) == (ssize_t)bytes;
}

/* Changes a word until the call's end. */
static void patch_word(struct thread *thread, unsigned long long address, long word)
{
	long was;

	if (!peek(thread->id, address, &was, sizeof(was)) || ptrace(PTRACE_POKEDATA, thread->id, address, word) != 0)
		die("cannot change the program's memory");
	thread->patch = (struct patch){ .address = address, .was = was };
}

static void patch_undo(struct thread *thread)
{
	if (thread->patch.address != 0)
		(void)ptrace(PTRACE_POKEDATA, thread->id, thread->patch.address, thread->patch.was);
	thread->patch.address = 0;
}

static bool peek_request(pid_t id, const struct user_regs_struct *registers, unsigned long long *address,
			 struct iocb *request)
{
	return registers->rsi > 0 && peek(id, registers->rdx, address, sizeof(*address)) &&
	       peek(id, *address, request, sizeof(*request));
}

/* ---- which calls count ---- */

static bool path_matches(pid_t id, const struct user_regs_struct *registers, enum argument argument)
{
	char link[64], path[PATH_MAX] = "";
	unsigned long long address = argument == PATH_FIRST ? registers->rdi : registers->rsi;
	struct iocb request;
	unsigned long long fd = registers->rdi;

	switch (argument) {
	case NONE:
		return false;
	case PATH_FIRST:
	case PATH_SECOND:
		for (size_t at = 0; at < sizeof(path) - 1 && peek(id, address + at, path + at, 1) && path[at] != '\0'; at++)
			path[at + 1] = '\0';
		return strstr(path, options.path) != NULL;
	case REQUESTS:
		if (!peek_request(id, registers, &address, &request))
			return false;
		fd = (unsigned long long)request.aio_fildes;
		break;
	case DESCRIPTOR:
		break;
	}
	(void)snprintf(link, sizeof(link), "/proc/%d/fd/%llu", (int)id, fd);
	return readlink(link, path, sizeof(path) - 1) > 0 && strstr(path, options.path) != NULL;
}

static bool counts(pid_t id, const struct user_regs_struct *registers, const struct call *call)
{
	if (call == NULL)
		return options.all && options.path == NULL;
	if (!options.all && !options.counted[call - calls])
		return false;
	return options.path == NULL || path_matches(id, registers, call->argument);
}

/* ---- what goes wrong ---- */

/* Half of it, of at least one byte; by sectors where there are some. */
static long half(size_t bytes)
{
	return (long)(bytes > 512 ? bytes / 2 & ~(size_t)511 : bytes / 2);
}

static bool shorten_vector(struct thread *thread, unsigned long long vector, unsigned long long *vectors)
{
	struct iovec first;

	if (*vectors > 1) {
		*vectors /= 2;
		return true;
	}
	if (*vectors == 0 || !peek(thread->id, vector, &first, sizeof(first)) || half(first.iov_len) == 0)
		return false;
	patch_word(thread, vector + offsetof(struct iovec, iov_len), half(first.iov_len));
	return true;
}

static bool shorten_request(struct thread *thread, const struct user_regs_struct *registers)
{
	unsigned long long address, vectors;
	struct iocb request;

	if (!peek_request(thread->id, registers, &address, &request) ||
	    (request.aio_lio_opcode != IO_CMD_PREADV && request.aio_lio_opcode != IO_CMD_PWRITEV))
		return false;
	vectors = request.u.c.nbytes;
	if (!shorten_vector(thread, (unsigned long long)(uintptr_t)request.u.c.buf, &vectors))
		return false;
	if (vectors != request.u.c.nbytes)
		patch_word(thread, address + offsetof(struct iocb, u.c.nbytes), (long)vectors);
	return true;
}

static bool shorten(struct thread *thread, struct user_regs_struct *registers)
{
	switch (registers->orig_rax) {
	case SYS_io_submit:
		return shorten_request(thread, registers);
	case SYS_pread64:
	case SYS_pwrite64:
		if (half(registers->rdx) == 0)
			return false;
		registers->rdx = (unsigned long long)half(registers->rdx);
		return true;
	case SYS_preadv:
	case SYS_pwritev:
		return shorten_vector(thread, registers->rsi, &registers->rdx);
	default:
		return false;
	}
}

/* The kernel takes the vectors when it is given the request, and looks at the memory when it carries it out. */
static bool fail_completion(struct thread *thread, const struct user_regs_struct *registers)
{
	unsigned long long address;
	struct iocb request;

	if (registers->orig_rax != SYS_io_submit || !peek_request(thread->id, registers, &address, &request) ||
	    (request.aio_lio_opcode != IO_CMD_PREADV && request.aio_lio_opcode != IO_CMD_PWRITEV))
		return false;
	patch_word(thread, (unsigned long long)(uintptr_t)request.u.c.buf + offsetof(struct iovec, iov_base), 4096);
	return true;
}

static void fail(struct thread *thread, struct user_regs_struct *registers, long error)
{
	thread->error = error;
	registers->orig_rax = (unsigned long long)-1;
	if (ptrace(PTRACE_SETREGS, thread->id, 0, registers) != 0)
		die("cannot set the program's registers");
}

/* Has the call that the thread is about to make go wrong. False when it cannot. */
static bool spoil(struct thread *thread, struct user_regs_struct *registers)
{
	bool done = true;

	switch (options.what) {
	case KILL:
		(void)kill(program, SIGKILL);
		break;
	case ERROR:
		fail(thread, registers, options.error);
		return true;
	case SHORT:
		done = shorten(thread, registers);
		break;
	case COMPLETE:
		done = fail_completion(thread, registers);
		break;
	case NOTHING:
		return false;
	}
	if (done && options.what != KILL && ptrace(PTRACE_SETREGS, thread->id, 0, registers) != 0)
		die("cannot set the program's registers");
	return done;
}

static void call_begins(struct thread *thread)
{
	struct user_regs_struct registers;
	const struct call *call;

	if (ptrace(PTRACE_GETREGS, thread->id, 0, &registers) != 0)
		return; /* killed meanwhile */
	call = call_of(registers.orig_rax);
	if (options.without_aio && registers.orig_rax == SYS_io_setup) {
		fail(thread, &registers, ENOSYS);
		return;
	}
	if (!counts(thread->id, &registers, call))
		return;
	count++;
	if (options.when == 0 || count < options.when || (count > options.when && !options.onwards))
		return;
	if (spoil(thread, &registers) && fired++ == 0)
		first_fired = call != NULL ? call->name : "another";
}

static void call_ends(struct thread *thread)
{
	struct user_regs_struct registers;

	patch_undo(thread);
	if (thread->error == 0 || ptrace(PTRACE_GETREGS, thread->id, 0, &registers) != 0)
		return;
	registers.rax = (unsigned long long)-thread->error;
	thread->error = 0;
	(void)ptrace(PTRACE_SETREGS, thread->id, 0, &registers);
}

/* ---- the program ---- */

static void write_report(void)
{
	FILE *file;

	if (options.report == NULL)
		return;
	file = fopen(options.report, "w");
	if (file == NULL || fprintf(file, "%lu %lu %s\n", count, fired, first_fired) < 0 || fclose(file) != 0)
		die("%s: %s", options.report, strerror(errno));
}

static void pass_on(int number)
{
	if (program > 0)
		(void)kill(program, number);
}

/* A stopped thread goes on; with the signal that it was to get. */
static void thread_stopped(struct thread *thread, int status)
{
	int number = WSTOPSIG(status);

	if (number == (SIGTRAP | 0x80)) {
		struct __ptrace_syscall_info info;

		if (ptrace(PTRACE_GET_SYSCALL_INFO, thread->id, sizeof(info), &info) <= 0)
			info.op = PTRACE_SYSCALL_INFO_NONE; /* killed meanwhile */
		if (info.op == PTRACE_SYSCALL_INFO_ENTRY)
			call_begins(thread);
		else if (info.op == PTRACE_SYSCALL_INFO_EXIT)
			call_ends(thread);
		number = 0;
	} else if (status >> 16 != 0) {
		/* The first stop of a new thread, an exec, a clone: nothing to hand on. */
		if (status >> 16 == PTRACE_EVENT_STOP && number != SIGTRAP) {
			(void)ptrace(PTRACE_LISTEN, thread->id, 0, 0);
			return;
		}
		number = 0;
	}
	(void)ptrace(PTRACE_SYSCALL, thread->id, 0, number);
}

/* Until the program ends; its exit status. */
static int follow(void)
{
	for (;;) {
		int status;
		const pid_t id = waitpid(-1, &status, __WALL);

		if (id < 0 && errno == EINTR)
			continue;
		if (id < 0)
			die("lost the program: %s", strerror(errno));
		if (WIFSTOPPED(status)) {
			thread_stopped(thread_of(id), status);
			continue;
		}
		*thread_of(id) = (struct thread){ 0 };
		if (id == program)
			return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	}
}

static void start(char **command)
{
	const unsigned long wanted = PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC;
	int gate[2], status;
	char go = 0;
	pid_t child;

	if (pipe2(gate, O_CLOEXEC) != 0)
		die("pipe: %s", strerror(errno));
	child = fork();
	if (child < 0)
		die("fork: %s", strerror(errno));
	if (child == 0) {
		(void)!read(gate[0], &go, 1);
		(void)execvp(command[0], command);
		_exit(127);
	}
	program = child;
	if (ptrace(PTRACE_SEIZE, child, 0, wanted) != 0 || ptrace(PTRACE_INTERRUPT, child, 0, 0) != 0)
		die("ptrace: %s", strerror(errno));
	if (waitpid(child, &status, __WALL) != child || write(gate[1], &go, 1) != 1)
		die("the program did not start");
	/* Not a call of its own yet: counting begins with the exec. */
	(void)ptrace(PTRACE_CONT, child, 0, 0);
	while (waitpid(child, &status, __WALL) == child && WIFSTOPPED(status) &&
	       status >> 8 != (SIGTRAP | (PTRACE_EVENT_EXEC << 8)))
		(void)ptrace(PTRACE_CONT, child, 0, WSTOPSIG(status) == SIGTRAP ? 0 : WSTOPSIG(status));
	if (!WIFSTOPPED(status))
		die("%s: cannot be run", command[0]);
	(void)ptrace(PTRACE_SYSCALL, child, 0, 0);
}

static void choose_calls(char *list)
{
	char *rest = NULL;

	options.all = false;
	for (char *name = strtok_r(list, ",", &rest); name != NULL; name = strtok_r(NULL, ",", &rest)) {
		unsigned i = 0;

		while (i < CALLS && strcmp(calls[i].name, name) != 0)
			i++;
		if (i == CALLS)
			die("%s: not a call that is known", name);
		options.counted[i] = true;
	}
}

static void parse(int argc, char **argv)
{
	static const struct option known[] = {
		{ "kill", no_argument, NULL, 'k' },	   { "error", required_argument, NULL, 'e' },
		{ "short", no_argument, NULL, 's' },	   { "complete", no_argument, NULL, 'f' },
		{ "nothing", no_argument, NULL, 'n' },	   { "when", required_argument, NULL, 'w' },
		{ "calls", required_argument, NULL, 'c' }, { "path", required_argument, NULL, 'p' },
		{ "onwards", no_argument, NULL, 'o' },	   { "report", required_argument, NULL, 'r' },
		{ "without-aio", no_argument, NULL, 'a' },
		{ NULL, 0, NULL, 0 },
	};
	int option;

	while ((option = getopt_long(argc, argv, "+", known, NULL)) != -1) {
		switch (option) {
		case 'k': options.what = KILL; break;
		case 'e': options.what = ERROR; options.error = strtol(optarg, NULL, 10); break;
		case 's': options.what = SHORT; break;
		case 'f': options.what = COMPLETE; break;
		case 'n': options.what = NOTHING; break;
		case 'w': options.when = strtoul(optarg, NULL, 10); break;
		case 'c': choose_calls(optarg); break;
		case 'p': options.path = optarg; break;
		case 'o': options.onwards = true; break;
		case 'a': options.without_aio = true; break;
		case 'r': options.report = optarg; break;
		default: exit(125);
		}
	}
	if (optind == argc)
		die("no command");
}

int main(int argc, char **argv)
{
	int status;

	parse(argc, argv);
	(void)signal(SIGTERM, pass_on);
	(void)signal(SIGINT, pass_on);
	start(argv + optind);
	status = follow();
	write_report();
	return status;
}
#endif
