/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A kernel with dm-user for a program that is run with this library preloaded: what it asks of the device mapper and of
 * dm-user's channels goes to tests/dm_user_fake.py, which plays the kernel's part, over the unix socket
 * $ROWSNAP_DM_USER_FAKE/socket. Only this is decided here: what is asked, never what is answered.
 *
 *	/dev/mapper/control             ioctl()s are sent there, each over a connection of its own
 *	/dev/dm-user/NAME               a connection for read(), another for write() and writev(); flock() as ioctl()
 *	/dev/mapper/..., /sys/dev/block/..., /run/udev/...    are looked for in $ROWSNAP_DM_USER_FAKE
 *
 * As with the real thing a channel can't be polled, and its read() sleeps until there is something, or a signal comes.
 *
 * A request is a letter, its numbers (32 bits) and bytes; an answer is a number, 0 or more, or negative errno, and
 * bytes:
 *	K                        control: may it be opened?
 *	I command bytes...       an ioctl                    -> result, bytes, ...
 *	O bytes name             open a channel              -> its number; then on this connection:
 *	   R count                  read                     -> count, ...
 *	   C                        a signal came: the read is to end (no answer of its own)
 *	W channel                its other connection; then on it:
 *	   w bytes...               write                    -> count
 *	F channel operation      flock                       -> result
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/dm-ioctl.h>

#define FDS_MAX 4096
#define PATH_BYTES 512

enum kind { KIND_OTHER, KIND_CONTROL, KIND_CHANNEL };

static struct {
	enum kind kind;
	uint32_t channel;
	int write_fd;
} fds[FDS_MAX];
static pthread_mutex_t write_mutex = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))(uintptr_t)dlsym(RTLD_NEXT, #name))

static enum kind kind_of(int fd)
{
	return fd >= 0 && fd < FDS_MAX ? __atomic_load_n(&fds[fd].kind, __ATOMIC_ACQUIRE) : KIND_OTHER;
}

/* ---- talking to the fake ---- */

static bool send_all(int fd, const void *bytes, size_t count)
{
	const char *at = bytes;

	while (count > 0) {
		ssize_t sent = send(fd, at, count, MSG_NOSIGNAL);

		if (sent < 0 && errno == EINTR)
			continue;
		if (sent <= 0)
			return false;
		at += sent;
		count -= (size_t)sent;
	}
	return true;
}

/* `interrupted` (may be NULL) is set, and the fake told so, when a signal comes before the answer. */
static bool receive_all(int fd, void *bytes, size_t count, bool *interrupted)
{
	char *at = bytes;

	while (count > 0) {
		ssize_t got = recv(fd, at, count, 0);

		if (got < 0 && errno == EINTR) {
			if (interrupted && !*interrupted) {
				*interrupted = true;
				if (!send_all(fd, "C", 1))
					return false;
			}
			continue;
		}
		if (got <= 0)
			return false;
		at += got;
		count -= (size_t)got;
	}
	return true;
}

static int fake_connect(void)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	(void)snprintf(address.sun_path, sizeof(address.sun_path), "%.90s/socket", getenv("ROWSNAP_DM_USER_FAKE"));
	if (fd >= 0 && connect(fd, (const struct sockaddr *)&address, sizeof(address)) == 0)
		return fd;
	if (fd >= 0)
		(void)REAL(close)(fd);
	return -1;
}

/* Sends a letter, numbers, bytes. */
static bool ask(int fd, char letter, const uint32_t *numbers, size_t number_count, const void *bytes, size_t count)
{
	return send_all(fd, &letter, 1) && send_all(fd, numbers, number_count * sizeof(*numbers)) &&
	       send_all(fd, bytes, count);
}

/* What a system call returns: the answer's number, or -1 and errno. */
static int answer_of(bool ok, int32_t answer)
{
	if (!ok)
		answer = -EIO;
	if (answer >= 0)
		return answer;
	errno = -answer;
	return -1;
}

/* A question on a connection of its own, answered by a number. */
static int ask_once(char letter, const uint32_t *numbers, size_t number_count)
{
	int32_t answer = -EIO;
	int fd = fake_connect();
	bool ok = fd >= 0 && ask(fd, letter, numbers, number_count, NULL, 0) &&
		  receive_all(fd, &answer, sizeof(answer), NULL);

	if (fd >= 0)
		(void)REAL(close)(fd);
	return answer_of(ok, answer);
}

/* ---- files ---- */

static bool starts_with(const char *path, const char *start)
{
	return strncmp(path, start, strlen(start)) == 0;
}

/* Where the file is to be looked for. */
static const char *place_of(const char *path, char place[static PATH_BYTES])
{
	const char *folder = getenv("ROWSNAP_DM_USER_FAKE");

	if (!folder || !path ||
	    !(starts_with(path, "/dev/mapper/") || starts_with(path, "/sys/dev/block/") || starts_with(path, "/run/udev/")))
		return path;
	(void)snprintf(place, PATH_BYTES, "%s%s", folder, path);
	return place;
}

static int open_control(void)
{
	int fd;

	if (ask_once('K', NULL, 0) < 0)
		return -1;
	fd = REAL(open)("/dev/null", O_RDWR | O_CLOEXEC);
	if (fd >= 0 && fd < FDS_MAX)
		__atomic_store_n(&fds[fd].kind, KIND_CONTROL, __ATOMIC_RELEASE);
	return fd;
}

static int open_channel(const char *name)
{
	uint32_t bytes = (uint32_t)strlen(name), number;
	int32_t answer = -EIO;
	int fd = fake_connect(), write_fd = -1;
	bool ok = fd >= 0 && fd < FDS_MAX && ask(fd, 'O', &bytes, 1, name, bytes) &&
		  receive_all(fd, &answer, sizeof(answer), NULL);

	if (ok && answer >= 0) {
		number = (uint32_t)answer;
		write_fd = fake_connect();
		ok = write_fd >= 0 && ask(write_fd, 'W', &number, 1, NULL, 0);
	}
	if (!ok || answer < 0) {
		if (fd >= 0)
			(void)REAL(close)(fd);
		return answer_of(ok, answer);
	}
	fds[fd].channel = (uint32_t)answer;
	fds[fd].write_fd = write_fd;
	__atomic_store_n(&fds[fd].kind, KIND_CHANNEL, __ATOMIC_RELEASE);
	return fd;
}

static int open_any(const char *path, int flags, mode_t mode)
{
	char place[PATH_BYTES];

	if (getenv("ROWSNAP_DM_USER_FAKE") && strcmp(path, "/dev/mapper/control") == 0)
		return open_control();
	if (getenv("ROWSNAP_DM_USER_FAKE") && starts_with(path, "/dev/dm-user/"))
		return open_channel(path + strlen("/dev/dm-user/"));
	return REAL(open)(place_of(path, place), flags, mode);
}

/* The names that a program, compiled one way or another, calls open() by. */
int __open_2(const char *path, int flags);
int __open64_2(const char *path, int flags);

int open(const char *path, int flags, ...)
{
	va_list arguments;
	mode_t mode = 0;

	va_start(arguments, flags);
	if (flags & (O_CREAT | __O_TMPFILE))
		mode = va_arg(arguments, mode_t);
	va_end(arguments);
	return open_any(path, flags, mode);
}

int open64(const char *path, int flags, ...)
{
	va_list arguments;
	mode_t mode = 0;

	va_start(arguments, flags);
	if (flags & (O_CREAT | __O_TMPFILE))
		mode = va_arg(arguments, mode_t);
	va_end(arguments);
	return open_any(path, flags | O_LARGEFILE, mode);
}

int __open_2(const char *path, int flags)
{
	return open_any(path, flags, 0);
}

int __open64_2(const char *path, int flags)
{
	return open_any(path, flags | O_LARGEFILE, 0);
}

int access(const char *path, int mode)
{
	char place[PATH_BYTES];

	return REAL(access)(place_of(path, place), mode);
}

ssize_t readlink(const char *restrict path, char *restrict target, size_t bytes)
{
	char place[PATH_BYTES];

	return REAL(readlink)(place_of(path, place), target, bytes);
}

int symlink(const char *target, const char *path)
{
	char place[PATH_BYTES];

	return REAL(symlink)(target, place_of(path, place));
}

int unlink(const char *path)
{
	char place[PATH_BYTES];

	return REAL(unlink)(place_of(path, place));
}

/* ---- descriptors ---- */

static ssize_t channel_read(int fd, void *buffer, size_t count)
{
	uint32_t wanted = count < INT32_MAX ? (uint32_t)count : INT32_MAX;
	int32_t answer = -EIO;
	bool interrupted = false;
	bool ok = ask(fd, 'R', &wanted, 1, NULL, 0) && receive_all(fd, &answer, sizeof(answer), &interrupted);

	if (ok && answer > 0)
		ok = receive_all(fd, buffer, (size_t)answer, NULL);
	return answer_of(ok, answer);
}

static ssize_t channel_write(int fd, const struct iovec *iov, int count)
{
	uint32_t bytes = 0;
	int32_t answer = -EIO;
	bool ok;

	for (int i = 0; i < count; i++)
		bytes += (uint32_t)iov[i].iov_len;
	pthread_mutex_lock(&write_mutex);
	ok = ask(fds[fd].write_fd, 'w', &bytes, 1, NULL, 0);
	for (int i = 0; i < count && ok; i++)
		ok = send_all(fds[fd].write_fd, iov[i].iov_base, iov[i].iov_len);
	ok = ok && receive_all(fds[fd].write_fd, &answer, sizeof(answer), NULL);
	pthread_mutex_unlock(&write_mutex);
	return answer_of(ok, answer);
}

ssize_t read(int fd, void *buffer, size_t count)
{
	return kind_of(fd) == KIND_CHANNEL ? channel_read(fd, buffer, count) : REAL(read)(fd, buffer, count);
}

ssize_t write(int fd, const void *buffer, size_t count)
{
	struct iovec iov = { (void *)(uintptr_t)buffer, count };

	return kind_of(fd) == KIND_CHANNEL ? channel_write(fd, &iov, 1) : REAL(write)(fd, buffer, count);
}

ssize_t writev(int fd, const struct iovec *iov, int count)
{
	return kind_of(fd) == KIND_CHANNEL ? channel_write(fd, iov, count) : REAL(writev)(fd, iov, count);
}

static int control_ioctl(unsigned long command, struct dm_ioctl *call)
{
	uint32_t numbers[2] = { (uint32_t)command, call->data_size }, bytes = 0;
	int32_t answer = -EIO;
	int fd = fake_connect();
	bool ok = fd >= 0 && ask(fd, 'I', numbers, 2, call, call->data_size) &&
		  receive_all(fd, &answer, sizeof(answer), NULL) && receive_all(fd, &bytes, sizeof(bytes), NULL);

	ok = ok && bytes <= numbers[1] && receive_all(fd, call, bytes, NULL);
	if (fd >= 0)
		(void)REAL(close)(fd);
	return answer_of(ok, answer);
}

int ioctl(int fd, unsigned long command, ...)
{
	va_list arguments;
	void *argument;

	va_start(arguments, command);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (kind_of(fd) == KIND_CONTROL)
		return control_ioctl(command, argument);
	return REAL(ioctl)(fd, command, argument);
}

int flock(int fd, int operation)
{
	uint32_t numbers[2] = { 0, (uint32_t)operation };

	if (kind_of(fd) != KIND_CHANNEL)
		return REAL(flock)(fd, operation);
	numbers[0] = fds[fd].channel;
	return ask_once('F', numbers, 2);
}

int epoll_ctl(int epoll_fd, int operation, int fd, struct epoll_event *event)
{
	if (kind_of(fd) == KIND_CHANNEL) {
		errno = EPERM;
		return -1;
	}
	return REAL(epoll_ctl)(epoll_fd, operation, fd, event);
}

int close(int fd)
{
	enum kind kind = kind_of(fd);

	if (kind == KIND_CHANNEL)
		(void)REAL(close)(fds[fd].write_fd);
	if (kind != KIND_OTHER)
		__atomic_store_n(&fds[fd].kind, KIND_OTHER, __ATOMIC_RELEASE);
	return REAL(close)(fd);
}
