/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The process that handles our loop devices.
 *
 * Whoever attaches, detaches or opens a loop device over our own files waits for the server, in the kernel, where no
 * signal reaches. So no thread of the server may: it could not end then. The keeper may; when the server is gone, its
 * waiting ends with an I/O error.
 *
 * The rule that leaves nothing behind: every device is attached with AUTOCLEAR and held open here. The keeper ends when
 * the server does, by its socket's end; then the kernel closes the devices, and detaches each as soon as nobody else
 * has it open. `losetup -d` by somebody else has no effect while we hold the device.
 *
 * A device of ours is told from what may come after it under the same number by its mark, which stands where losetup would
 * put the file's name. What a dead server left can't be asked for its mark any more: it is known by where its file was.
 */
#include "io/loopdev-keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/fs.h>
#include <linux/loop.h>
#include <linux/magic.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/statfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "io/cleanup.h"
#include "io/list.h"
#include "io/probe.h"

#define ATTACH_TRIES_MAX 64
#define DEVICE_PATH_BYTES 32u

_Static_assert(KEEPER_MARK_BYTES == LO_NAME_SIZE, "the mark is the loop device's file name");

#define KEPT_MAX 1024u

struct kept {
	int number, fd;
};

struct keeping {
	int socket;
	struct kept devices[KEPT_MAX];
	size_t count;
};

static void device_path(int number, char path[static DEVICE_PATH_BYTES])
{
	(void)snprintf(path, DEVICE_PATH_BYTES, "/dev/loop%d", number);
}

static void answer_error(struct keeper_message *message, int error, const char *what)
{
	message->error = error;
	(void)snprintf(message->text, sizeof(message->text), "%s: %s", what, strerror(-error));
}

/* ---- attaching ---- */

/*
 * The driver takes a file with fallocate() for one that can be punched. Newer kernels offer no discards any more after one
 * was refused, so here is one. (The limit in sysfs would stay with the device's number, whatever is attached there next.)
 */
static void have_discard_refused(int device, const struct keeper_message *message)
{
	uint64_t range[2] = { 0, 4096 };

	if (!message->can_punch && !message->read_only)
		(void)ioctl(device, BLKDISCARD, range);
}

/* A free device's number and its descriptor, or a negative errno with the answer's text set. */
static int open_free(int control, struct keeper_message *message, int *fd)
{
	char path[DEVICE_PATH_BYTES];
	int number = ioctl(control, LOOP_CTL_GET_FREE);

	if (number < 0) {
		answer_error(message, -errno, "no loop device is free");
		return message->error;
	}
	device_path(number, path);
	*fd = open(path, (message->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	if (*fd >= 0)
		return number;
	answer_error(message, -errno, path);
	return message->error;
}

static int configure(int device, int file, const struct keeper_message *message)
{
	struct loop_config config = {
		.fd = (uint32_t)file,
		.block_size = message->sector_bytes,
		.info.lo_flags = LO_FLAGS_DIRECT_IO | LO_FLAGS_AUTOCLEAR | (message->read_only ? LO_FLAGS_READ_ONLY : 0),
	};

	memcpy(config.info.lo_file_name, message->mark, KEEPER_MARK_BYTES);
	return ioctl(device, LOOP_CONFIGURE, &config) == 0 ? 0 : -errno;
}

static void attach_file(int control, int file, struct keeper_message *message, struct keeping *keeping)
{
	int error = -EBUSY, fd = -1;

	/* Between the asking for a free one and the taking, somebody else may have taken it. */
	for (int i = 0; i < ATTACH_TRIES_MAX && error == -EBUSY; i++) {
		message->number = open_free(control, message, &fd);
		if (message->number < 0)
			return;
		error = configure(fd, file, message);
		if (error != 0)
			(void)close(fd);
	}
	if (error != 0) {
		answer_error(message, error, "cannot be attached to a loop device");
		return;
	}
	have_discard_refused(fd, message);
	message->error = 0;
	keeping->devices[keeping->count++] = (struct kept){ message->number, fd };
}

static void attach(struct keeping *keeping, struct keeper_message *message)
{
	auto_close int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	auto_close int file = -1;
	struct statfs status;

	if (control < 0) {
		answer_error(message, -errno, "/dev/loop-control (is the kernel's loop module loaded?)");
		return;
	}
	file = open(message->text, (message->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	if (file < 0 || fstatfs(file, &status) != 0) {
		answer_error(message, -errno, "the served file cannot be opened");
		return;
	}
	if (status.f_type != FUSE_SUPER_MAGIC) {
		answer_error(message, -ESTALE, "what is served there now is something else");
		return;
	}
	if (keeping->count == KEPT_MAX)
		answer_error(message, -EMFILE, "the served file");
	else
		attach_file(control, file, message, keeping);
}

/* ---- detaching ---- */

/*
 * Looks at a device, which opens and closes it. Returns 0 with its `info`; -ENXIO when nothing is attached; else
 * the error of asking the file behind it, such as -ENOTCONN for one whose server is dead.
 */
static int look_at(int number, struct loop_info64 *info)
{
	char path[DEVICE_PATH_BYTES];
	auto_close int fd = -1;

	device_path(number, path);
	fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return -ENXIO;
	return ioctl(fd, LOOP_GET_STATUS64, info) == 0 ? 0 : -errno;
}

/* Whether a device of ours is still attached; what is attached under another mark has come after it. */
static bool is_attached(int number, const char *mark)
{
	struct loop_info64 info;
	int error = look_at(number, &info);

	return error == 0 ? memcmp(info.lo_file_name, mark, KEEPER_MARK_BYTES) == 0 : error != -ENXIO;
}

static void let_go(struct keeping *keeping, int number)
{
	for (size_t i = 0; i < keeping->count; i++) {
		if (keeping->devices[i].number != number)
			continue;
		(void)close(keeping->devices[i].fd);
		keeping->devices[i] = keeping->devices[--keeping->count];
		return;
	}
}

/* Who holds the device, as the answer; nobody may be found any more, or not be visible from here. */
static void describe_holder(struct keeper_message *message)
{
	char path[DEVICE_PATH_BYTES], text[PROBE_TEXT_BYTES];

	device_path(message->number, path);
	message->error = -EBUSY;
	message->text[0] = '\0';
	if (probe_busy(path, text) == 1 || probe_opener(path, text) == 1)
		(void)snprintf(message->text, sizeof(message->text), "%s is %s", path, text);
}

static void detach(struct keeping *keeping, struct keeper_message *message)
{
	let_go(keeping, message->number);
	message->error = 0;
	if (is_attached(message->number, message->mark))
		describe_holder(message);
}

/* A mount and the like would be hurt; who only has the device open gets errors, as with any disk that goes. */
static void ask(struct keeper_message *message)
{
	char path[DEVICE_PATH_BYTES], text[PROBE_TEXT_BYTES];

	device_path(message->number, path);
	message->error = 0;
	if (probe_busy(path, text) != 1)
		return;
	message->error = -EBUSY;
	(void)snprintf(message->text, sizeof(message->text), "%s is %s", path, text);
}

/* ---- what an earlier server left ---- */

bool keeper_device_lies_in(int number, const char *directory)
{
	char path[64], file[PATH_MAX];
	size_t length = strlen(directory);
	FILE *stream;
	bool is;

	(void)snprintf(path, sizeof(path), "/sys/block/loop%d/loop/backing_file", number);
	stream = fopen(path, "re");
	if (stream == NULL)
		return false;
	is = fgets(file, (int)sizeof(file), stream) != NULL && strncmp(file, directory, length) == 0 && file[length] == '/';
	(void)fclose(stream);
	return is;
}

static void clean_one(struct keeper_message *message, const char *directory, int number)
{
	size_t used = strlen(message->text);
	char path[DEVICE_PATH_BYTES], text[PROBE_TEXT_BYTES];
	struct loop_info64 info;
	auto_close int fd = -1;
	int error = keeper_device_lies_in(number, directory) ? look_at(number, &info) : -ENXIO;

	if (error == 0 || error == -ENXIO)
		return;
	device_path(number, path);
	if (probe_busy(path, text) == 1) {
		(void)snprintf(message->text + used, sizeof(message->text) - used,
			       "%s, of a server that is dead now, is %s: nothing can be read there any more\n", path, text);
		return;
	}
	fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd >= 0 && ioctl(fd, LOOP_CLR_FD, 0) == 0)
		(void)snprintf(message->text + used, sizeof(message->text) - used,
			       "%s, which a server that is dead now had left, is detached\n", path);
}

static void clean(struct keeper_message *message)
{
	static const char before[] = "/sys/block/loop";
	auto_free char *directory = realpath(message->text, NULL);
	glob_t found = { 0 };

	message->error = 0;
	message->text[0] = '\0';
	if (directory != NULL && glob("/sys/block/loop*/loop/backing_file", GLOB_NOSORT, NULL, &found) == 0)
		for (size_t i = 0; i < found.gl_pathc; i++)
			clean_one(message, directory, (int)strtol(found.gl_pathv[i] + sizeof(before) - 1, NULL, 10));
	globfree(&found);
}

/* ---- the process ---- */

static void carry_out(struct keeping *keeping, struct keeper_message *message)
{
	switch ((enum keeper_op)message->op) {
	case KEEPER_ATTACH:
		attach(keeping, message);
		break;
	case KEEPER_DETACH:
		detach(keeping, message);
		break;
	case KEEPER_ASK:
		ask(message);
		break;
	case KEEPER_CLEAN:
		clean(message);
		break;
	}
}

/* Until the server is gone. A signal to the whole group, ^C or a service's end, is the server's to obey. */
__attribute__((noreturn)) static void keep(int socket)
{
	struct keeping keeping = { .socket = socket };
	static const int ignored[] = { SIGINT, SIGTERM, SIGHUP, SIGPIPE, SIGQUIT };
	static struct keeper_message message;
	int null = open("/dev/null", O_RDWR);

	for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
		(void)signal(ignored[i], SIG_IGN);
	(void)prctl(PR_SET_NAME, "rowsnap-loop");
	/* Whoever reads the server's output shall see its end. */
	for (int fd = 0; null >= 0 && fd <= STDERR_FILENO; fd++)
		(void)dup2(null, fd);
	(void)!chdir("/");
	while (recv(socket, &message, sizeof(message), 0) == (ssize_t)sizeof(message)) {
		carry_out(&keeping, &message);
		if (send(socket, &message, sizeof(message), 0) != (ssize_t)sizeof(message))
			break;
	}
	_exit(0);
}

int keeper_start(struct keeper *keeper)
{
	int ends[2], flags;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
		return -errno;
	keeper->pid = fork();
	if (keeper->pid == 0) {
		(void)close(ends[0]);
		keep(ends[1]);
	}
	(void)close(ends[1]);
	keeper->fd = ends[0];
	flags = fcntl(keeper->fd, F_GETFL);
	if (keeper->pid > 0 && flags >= 0 && fcntl(keeper->fd, F_SETFL, flags | O_NONBLOCK) == 0)
		return 0;
	flags = -errno;
	(void)close(keeper->fd);
	if (keeper->pid > 0)
		(void)waitpid(keeper->pid, NULL, 0);
	return flags;
}

int keeper_clean(struct keeper *keeper, const char *directory, struct keeper_message *message)
{
	struct pollfd wait = { .fd = keeper->fd, .events = POLLIN };

	*message = (struct keeper_message){ .op = KEEPER_CLEAN };
	(void)snprintf(message->text, sizeof(message->text), "%s", directory);
	if (send(keeper->fd, message, sizeof(*message), MSG_NOSIGNAL) != (ssize_t)sizeof(*message))
		return -EPIPE;
	while (poll(&wait, 1, -1) < 0 && errno == EINTR)
		;
	if (recv(keeper->fd, message, sizeof(*message), 0) != (ssize_t)sizeof(*message))
		return -EPIPE;
	message->text[sizeof(message->text) - 1] = '\0';
	return 0;
}

void keeper_end(struct keeper *keeper)
{
	(void)close(keeper->fd);
	(void)kill(keeper->pid, SIGKILL); /* somebody may have stopped it; and it has nothing to do but to end */
	while (waitpid(keeper->pid, NULL, 0) < 0 && errno == EINTR)
		;
}
