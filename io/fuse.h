/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Exports as files in a folder, by FUSE. See fuse.c. */
#ifndef IO_FUSE_H
#define IO_FUSE_H

#include "io/arena.h"
#include "io/loop.h"
#include "io/request.h"
#include "io/transport.h"

struct fuse_counters {
	bool mounted; /* false once somebody has unmounted the folder behind our back */
	uint64_t files_open;
	uint64_t requests; /* given to the engine */
	uint64_t bytes_read, bytes_written;
};

/*
 * Mounts `directory`, which must be there and empty, and serves in it
 *	origin            mode 0600, as large as the export
 *	snapshots/NAME    every other export; mode 0400 where it is read-only; its times are those of its creation
 * to processes of our own user only. A dead mount that a killed server left there is removed first. Without root,
 * fusermount3 does the mounting. Blocks until mounted (not until the kernel's first message is answered: the loop's
 * turns do that, so whoever looks into the folder waits for them).
 *
 * Errors: those of opening the folder (-ENOENT, -ENOTDIR, -EACCES, ...), -ENOTEMPTY, -EBUSY a mount point already,
 * -ENODEV no /dev/fuse, or one that we may not open, -ENOTSUP not root and no fusermount3, -EPERM mounting was refused,
 * -ENOMEM, and epoll_ctl's. With the last three of FUSE's own, libfuse's or fusermount3's reason has been logged.
 *
 * Data buffers come from `arena`, which must be larger than REQUEST_DATA_BYTES_MAX. The loop, the table and the arena
 * must outlive the transport. While it serves, nothing on the loop's thread may touch the folder: not even stat() it.
 * No child process may live on with our descriptors in it (exec closes them): the mount would not end with us.
 */
__attribute__((warn_unused_result)) int fuse_start(struct loop *loop, struct export_table *exports, struct arena *arena,
						   const char *directory, struct transport **transport);
void fuse_get_counters(const struct transport *transport, struct fuse_counters *counters);
/* The folder's absolute path. */
const char *fuse_directory(const struct transport *transport);
/* The path of an export's file. Returns 0 or -ENAMETOOLONG. */
__attribute__((warn_unused_result)) int fuse_file_path(const struct transport *transport, const struct export *export,
						       char *path, size_t bytes);

#endif
