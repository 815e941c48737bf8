/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a path is and who uses it, for the checks before something is overwritten: libblkid for signatures, /proc and /sys
 * for mounts, holders and lock owners. Texts are written for an error message and say what was found.
 */
#ifndef IO_PROBE_H
#define IO_PROBE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PROBE_TEXT_BYTES 512u

/*
 * Looks for any signature libblkid knows (file systems, RAID, partition tables). Returns 1 and describes all that was
 * found in `text` ("ext4 file system labelled 'root'; ..."), 0 when there is none, or a negative errno. Reads only.
 */
__attribute__((warn_unused_result)) int probe_signature(const char *path, char text[static PROBE_TEXT_BYTES]);

/*
 * Wipes every signature that libblkid knows, durably. Returns 0 or a negative errno. The path must not be in use.
 */
__attribute__((warn_unused_result)) int probe_wipe(const char *path);

/*
 * Whether something uses the file or device. Returns 1 and names it in `text`: "mounted on /mnt", "held by dm-0 (vg-root)",
 * "its partition /dev/sdb1 is mounted on /mnt", "used as swap", "attached to /dev/loop3", "locked by process 4711
 * (rowsnap)"; 0 when nothing does; or a negative errno.
 */
__attribute__((warn_unused_result)) int probe_busy(const char *path, char text[static PROBE_TEXT_BYTES]);

/*
 * The same for uses that may write: readers' locks, read-only mounts and read-only loop devices do not count.
 */
__attribute__((warn_unused_result)) int probe_written(const char *path, char text[static PROBE_TEXT_BYTES]);

/*
 * Whether another process has the file or device open under this path, as far as we may look. Returns 1 and names one in
 * `text`: "open in process 4711 (dd)"; 0; or a negative errno. For a message: others may be missed in no time.
 */
__attribute__((warn_unused_result)) int probe_opener(const char *path, char text[static PROBE_TEXT_BYTES]);

/*
 * Whether what is at `path` (or, where nothing is yet, its folder) lies on one of `names` in the end: block devices, or
 * folders with a FUSE mount ("/mnt" stands for all below it). Through file systems, partitions, device-mapper and loop
 * devices. Returns 1 and which in *found, 0, or a negative errno.
 */
__attribute__((warn_unused_result)) int probe_lies_on(const char *path, const char *const *names, size_t count,
						      const char **found);

#endif
