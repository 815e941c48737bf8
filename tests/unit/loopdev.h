/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Loop devices for tests that want a real block device. They are set to clear themselves when their last user closes
 * them, so a test that crashes leaves none behind.
 */
#ifndef TESTS_LOOPDEV_H
#define TESTS_LOOPDEV_H

#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define LOOPDEV_PATH_BYTES 32u

/*
 * Attaches a free loop device to `backing`; `flags` are LO_FLAGS_READ_ONLY or LO_FLAGS_PARTSCAN. Returns the descriptor
 * that keeps it attached, or a negative errno: no permission, no loop devices here.
 */
static inline int loopdev_attach(const char *backing, uint32_t sector_bytes, uint32_t flags,
				 char path[static LOOPDEV_PATH_BYTES])
{
	struct loop_config config = { .block_size = sector_bytes };
	int control, backing_fd, fd = -1, error = -EBUSY;

	control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
	if (control < 0)
		return -errno;
	backing_fd = open(backing, (flags & LO_FLAGS_READ_ONLY ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	if (backing_fd < 0) {
		error = -errno;
		(void)close(control);
		return error;
	}
	config.fd = (uint32_t)backing_fd;
	config.info.lo_flags = flags | LO_FLAGS_AUTOCLEAR;
	/* Another program may take the free one first. */
	for (unsigned tries = 0; tries < 20 && error == -EBUSY; tries++) {
		const int number = ioctl(control, LOOP_CTL_GET_FREE);

		if (number < 0) {
			error = -errno;
			break;
		}
		(void)snprintf(path, LOOPDEV_PATH_BYTES, "/dev/loop%d", number);
		fd = open(path, (flags & LO_FLAGS_READ_ONLY ? O_RDONLY : O_RDWR) | O_CLOEXEC);
		if (fd < 0) {
			error = -errno;
			break;
		}
		error = ioctl(fd, LOOP_CONFIGURE, &config) < 0 ? -errno : 0;
		if (error < 0) {
			(void)close(fd);
			fd = -1;
		}
	}
	(void)close(backing_fd);
	(void)close(control);
	return error < 0 ? error : fd;
}

#endif
