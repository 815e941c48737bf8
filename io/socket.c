/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Unix stream sockets at a path.
 *
 * A path with a socket that refuses connections was left behind by a server that died: only that is replaced. The mode
 * is set on the descriptor before it is bound, and bind(2) gives it to the path, so there is no moment at which others
 * could connect, and the process's umask (which belongs to all its threads) is left alone.
 */
#include "io/socket.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "io/cleanup.h"

#define BACKLOG 128

static int address_set(struct sockaddr_un *address, const char *path)
{
	size_t length = strlen(path);

	if (length == 0)
		return -ENOENT;
	if (length >= sizeof(address->sun_path))
		return -ENAMETOOLONG;
	*address = (struct sockaddr_un){ .sun_family = AF_UNIX };
	memcpy(address->sun_path, path, length + 1);
	return 0;
}

/* Makes way for a new socket at the path. 0, -EADDRINUSE when somebody answers there, or why it can't be done. */
static int remove_stale(const struct sockaddr_un *address)
{
	auto_close int probe = -1;
	struct stat info;

	if (lstat(address->sun_path, &info) != 0)
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(info.st_mode))
		return -EEXIST;
	probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (probe < 0)
		return -errno;
	if (connect(probe, (const struct sockaddr *)address, sizeof(*address)) == 0 || errno == EAGAIN)
		return -EADDRINUSE;
	if (errno != ECONNREFUSED)
		return errno == ENOENT ? 0 : -errno;
	if (unlink(address->sun_path) != 0 && errno != ENOENT)
		return -errno;
	return 0;
}

static int bind_and_listen(int fd, const struct sockaddr_un *address)
{
	if (fchmod(fd, S_IRUSR | S_IWUSR) != 0 || bind(fd, (const struct sockaddr *)address, sizeof(*address)) != 0)
		return -errno;
	if (listen(fd, BACKLOG) != 0) {
		int error = -errno;

		(void)unlink(address->sun_path);
		return error;
	}
	return 0;
}

int socket_listen(const char *path)
{
	struct sockaddr_un address;
	int error = address_set(&address, path);
	int fd;

	if (error == 0)
		error = remove_stale(&address);
	if (error != 0)
		return error;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	error = bind_and_listen(fd, &address);
	if (error != 0) {
		(void)close(fd);
		return error;
	}
	return fd;
}

int socket_accept(int listener)
{
	struct ucred peer;
	socklen_t length = sizeof(peer);
	struct sockaddr_un address;
	socklen_t address_length = sizeof(address);
	int fd = accept4(listener, (struct sockaddr *)&address, &address_length, SOCK_CLOEXEC | SOCK_NONBLOCK);
	int error = 0;

	if (fd < 0)
		return -errno;
	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0)
		error = -errno;
	else if (peer.uid != 0 && peer.uid != geteuid())
		error = -EPERM;
	if (error != 0) {
		(void)close(fd);
		return error;
	}
	return fd;
}

int socket_connect(const char *path)
{
	struct sockaddr_un address;
	int error = address_set(&address, path);
	int fd;

	if (error != 0)
		return error;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0) {
		error = -errno;
		(void)close(fd);
		return error;
	}
	return fd;
}
