/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a path is and who uses it.
 *
 * Signatures are libblkid's affair: superblocks and partition tables, all of them, also those whose own checksum does
 * not hold (they may still be somebody's data). rowsnap's own stores are unknown to it.
 *
 * Use is asked from the kernel, in the order of how well it can be named: mounts, swap, holders (device-mapper, md,
 * ...) for a device and each of its partitions; loop devices for a file; lock owners; and last, for a device, whether
 * the kernel would let us have it exclusively, which catches everything else.
 *
 * Everything that is read here (labels, names of processes, paths) is outside text: it is bounded, and made harmless
 * before it gets into a message.
 */
#include "io/probe.h"

#include <blkid/blkid.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "io/cleanup.h"
#include "io/text.h"

#define FINDINGS_MAX 64u
#define WIPES_MAX 256u
#define SYSFS_PATH_BYTES 512u
#define VALUE_BYTES 256u

/* ---- Texts. ---- */

/* Appends to a text of PROBE_TEXT_BYTES, as much as there is room for. */
__attribute__((format(printf, 2, 3))) static void text_add(char text[static PROBE_TEXT_BYTES], const char *format, ...)
{
	const size_t used = strlen(text);
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(text + used, PROBE_TEXT_BYTES - used, format, arguments);
	va_end(arguments);
	text_make_harmless(text + used, strlen(text + used));
}

/* The kernel writes blanks and the like in paths as \ooo: undoes that, in place. */
static void unescape(char *path)
{
	const char *from = path;
	char *to = path;

	while (*from != '\0') {
		if (from[0] == '\\' && from[1] >= '0' && from[1] <= '3' && from[2] >= '0' && from[2] <= '7' &&
		    from[3] >= '0' && from[3] <= '7') {
			*to++ = (char)((from[1] - '0') << 6 | (from[2] - '0') << 3 | (from[3] - '0'));
			from += 4;
		} else {
			*to++ = *from++;
		}
	}
	*to = '\0';
}

/* The first line of a small file of the kernel's. False when there is none. */
static bool read_line(const char *path, char line[static VALUE_BYTES])
{
	FILE *file = fopen(path, "re");
	bool ok;

	if (!file)
		return false;
	ok = fgets(line, (int)VALUE_BYTES, file) != NULL;
	(void)fclose(file);
	if (ok)
		line[strcspn(line, "\n")] = '\0';
	return ok;
}

/*
 * Shows a file's lines, without the newline, to `match` until that says true. 1 when it did, 0 when it never did, or
 * fopen's errors. The lines may be changed.
 */
static int search_lines(const char *path, bool (*match)(char *line, void *context), void *context)
{
	FILE *file = fopen(path, "re");
	char *line = NULL;
	size_t size = 0;
	bool found = false;

	if (!file)
		return -errno;
	while (!found && getline(&line, &size, file) > 0) {
		line[strcspn(line, "\n")] = '\0';
		found = match(line, context);
	}
	free(line);
	(void)fclose(file);
	return found ? 1 : 0;
}

/* The same for the paths that `pattern` stands for, in order of their names. */
static int search_paths(const char *pattern, bool (*match)(const char *path, void *context), void *context)
{
	glob_t paths;
	bool found = false;
	int result = glob(pattern, 0, NULL, &paths);

	if (result == GLOB_NOMATCH)
		return 0;
	if (result != 0)
		return result == GLOB_NOSPACE ? -ENOMEM : -EIO;
	for (size_t i = 0; i < paths.gl_pathc && !found; i++)
		found = match(paths.gl_pathv[i], context);
	globfree(&paths);
	return found ? 1 : 0;
}

/* "MAJOR:MINOR" and then `end`, in base 10 or 16. */
static bool parse_device(const char *text, int base, char end, dev_t *device, const char **rest)
{
	unsigned long major_number, minor_number;
	char *stop;

	errno = 0;
	major_number = strtoul(text, &stop, base);
	if (stop == text || *stop != ':')
		return false;
	text = stop + 1;
	minor_number = strtoul(text, &stop, base);
	if (stop == text || *stop != end || errno != 0 || major_number > UINT32_MAX || minor_number > UINT32_MAX)
		return false;
	*device = makedev((unsigned)major_number, (unsigned)minor_number);
	if (rest)
		*rest = stop + 1;
	return true;
}

/* ---- Signatures. ---- */

static int open_disk(const char *path, int access, struct stat *status)
{
	int fd, error = 0;

	if (stat(path, status) < 0)
		return -errno;
	if (!S_ISBLK(status->st_mode) && !S_ISREG(status->st_mode))
		return -ENOTBLK; /* opening other things may wait, or do something */
	fd = open(path, access | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (fd < 0)
		return -errno;
	if (fstat(fd, status) < 0)
		error = -errno;
	else if (!S_ISBLK(status->st_mode) && !S_ISREG(status->st_mode))
		error = -ENOTBLK;
	if (error < 0) {
		(void)close(fd);
		return error;
	}
	return fd;
}

/* What libblkid's last failure stands for; it does not always say. */
static int prober_error(void)
{
	return errno > 0 ? -errno : -EIO;
}

/* NULL and *error when it can't be. */
static blkid_probe make_prober(int fd, int *error)
{
	blkid_probe prober = blkid_new_probe();

	if (!prober) {
		*error = -ENOMEM;
		return NULL;
	}
	errno = 0;
	if (blkid_probe_set_device(prober, fd, 0, 0) == 0 && blkid_probe_enable_superblocks(prober, 1) == 0 &&
	    blkid_probe_set_superblocks_flags(prober, BLKID_SUBLKS_LABEL | BLKID_SUBLKS_TYPE | BLKID_SUBLKS_USAGE |
							      BLKID_SUBLKS_MAGIC | BLKID_SUBLKS_BADCSUM) == 0 &&
	    blkid_probe_enable_partitions(prober, 1) == 0 &&
	    blkid_probe_set_partitions_flags(prober, BLKID_PARTS_MAGIC | BLKID_PARTS_FORCE_GPT) == 0)
		return prober;
	*error = prober_error();
	blkid_free_probe(prober);
	return NULL;
}

/* The next finding: 1 there is one, 0 no more, or a negative errno. */
static int next_finding(blkid_probe prober)
{
	int result;

	errno = 0;
	result = blkid_do_probe(prober);
	if (result == 0)
		return 1;
	if (result == 1)
		return 0;
	return prober_error();
}

static const char *value_of(blkid_probe prober, const char *name)
{
	const char *value;

	return blkid_probe_lookup_value(prober, name, &value, NULL) == 0 ? value : NULL;
}

static void describe_finding(blkid_probe prober, char text[static PROBE_TEXT_BYTES])
{
	const char *type = value_of(prober, "TYPE"), *table = value_of(prober, "PTTYPE");
	const char *usage = value_of(prober, "USAGE"), *label = value_of(prober, "LABEL");

	if (text[0] != '\0')
		text_add(text, "; ");
	if (type && usage && strcmp(usage, "filesystem") == 0)
		text_add(text, "%s file system", type);
	else if (type && usage && strcmp(usage, "raid") == 0)
		text_add(text, "%s volume or RAID member", type);
	else if (type && usage && strcmp(usage, "crypto") == 0)
		text_add(text, "%s encrypted volume", type);
	else if (type)
		text_add(text, "%s area", type);
	else if (table)
		text_add(text, "%s partition table", table);
	else
		text_add(text, "unknown signature");
	if (label)
		text_add(text, " labelled '%.64s'", label);
}

int probe_signature(const char *path, char text[static PROBE_TEXT_BYTES])
{
	struct stat status = { 0 };
	auto_close int fd = open_disk(path, O_RDONLY, &status);
	unsigned count = 0;
	blkid_probe prober;
	int result = 0;

	text[0] = '\0';
	if (fd < 0)
		return fd;
	prober = make_prober(fd, &result);
	if (!prober)
		return result;
	while (count < FINDINGS_MAX) {
		result = next_finding(prober);
		if (result != 1)
			break;
		describe_finding(prober, text);
		count++;
	}
	blkid_free_probe(prober);
	if (count > 0)
		return 1; /* enough to refuse, whatever came after */
	return result;
}

int probe_wipe(const char *path)
{
	struct stat status = { 0 };
	auto_close int fd = open_disk(path, O_RDWR, &status);
	blkid_probe prober;
	int result = 0;

	if (fd < 0)
		return fd;
	prober = make_prober(fd, &result);
	if (!prober)
		return result;
	for (unsigned count = 0; count < WIPES_MAX; count++) {
		result = next_finding(prober);
		if (result != 1)
			break;
		errno = 0;
		/* Wipes it and steps back, so that what lies below it is found next. */
		if (blkid_do_wipe(prober, 0) != 0) {
			result = prober_error();
			break;
		}
	}
	blkid_free_probe(prober);
	if (result < 0)
		return result;
	return fsync(fd) < 0 ? -errno : 0;
}

/* ---- Use. ---- */

/* What is asked about: the device (or partition) `number`, or the file that `status` is of. */
struct subject {
	struct stat status;
	bool is_device;
	bool writers;    /* who only reads does not count ... */
	bool read_here;  /* ... but was seen: a read-only mount */
	dev_t number;    /* of a device */
	char prefix[96]; /* for the message: "" or "its partition /dev/sdb1 is " */
};

static bool is_subject(const struct subject *subject, const struct stat *status)
{
	if (subject->is_device)
		return S_ISBLK(status->st_mode) && status->st_rdev == subject->number;
	return status->st_dev == subject->status.st_dev && status->st_ino == subject->status.st_ino;
}

static bool is_subject_path(const struct subject *subject, const char *path)
{
	struct stat status;

	return path[0] == '/' && stat(path, &status) == 0 && is_subject(subject, &status);
}

/* A search for a use of the subject. */
struct search {
	const struct subject *subject;
	bool reader;                  /* a read-only mount was passed over */
	char found[PROBE_TEXT_BYTES]; /* the mount point, the loop device's file, ... */
};

#define MOUNT_FIELDS 5u /* of a line of mountinfo, up to the mount point */

/* Cuts a line of mountinfo up. Returns what follows " - ", or NULL when it is none. */
static char *split_mount(char *line, char *fields[static MOUNT_FIELDS])
{
	char *next = NULL, *separator = strstr(line, " - ");

	if (!separator)
		return NULL;
	*separator = '\0';
	for (unsigned i = 0; i < MOUNT_FIELDS; i++) {
		fields[i] = strtok_r(i == 0 ? line : NULL, " ", &next);
		if (!fields[i])
			return NULL;
	}
	return separator + 3;
}

/*
 * A line of mountinfo: "36 35 98:0 /root /mount/point options [fields] - type source options". The device is in the
 * third field, but for file systems over several devices, which have a made-up number there: so the source, too.
 */
static bool match_mount(char *line, void *context)
{
	struct search *search = context;
	char *fields[MOUNT_FIELDS], *next = NULL, *source = NULL, *options = NULL, *rest = split_mount(line, fields);
	bool found;
	dev_t device;

	if (!rest)
		return false;
	found = parse_device(fields[2], 10, '\0', &device, NULL) && device == search->subject->number;
	if (strtok_r(rest, " ", &next))
		source = strtok_r(NULL, " ", &next);
	if (source)
		options = strtok_r(NULL, " ", &next);
	if (!found && source) {
		unescape(source);
		found = is_subject_path(search->subject, source);
	}
	/* The file system's own option: a single mount of it may be read-only while another is not. */
	if (found && search->subject->writers && options && strcspn(options, ",") == 2 && strncmp(options, "ro", 2) == 0) {
		search->reader = true;
		found = false;
	}
	if (found) {
		unescape(fields[4]);
		(void)snprintf(search->found, sizeof(search->found), "%s", fields[4]);
	}
	return found;
}

static int find_mount(struct subject *subject, char text[static PROBE_TEXT_BYTES])
{
	struct search search = { .subject = subject };
	const int result = search_lines("/proc/self/mountinfo", match_mount, &search);

	subject->read_here = subject->read_here || search.reader;
	if (result == 1)
		text_add(text, "%smounted on %s", subject->prefix, search.found);
	return result;
}

/* A line of /proc/swaps: the path first. */
static bool match_swap(char *line, void *context)
{
	const struct search *search = context;

	line[strcspn(line, " \t")] = '\0';
	unescape(line);
	return is_subject_path(search->subject, line);
}

static int find_swap(const struct subject *subject, char text[static PROBE_TEXT_BYTES])
{
	struct search search = { .subject = subject };
	const int result = search_lines("/proc/swaps", match_swap, &search);

	if (result == 1)
		text_add(text, "%sused as swap", subject->prefix);
	return result == -ENOENT ? 0 : result; /* a kernel without swap */
}

/* ".../holders/dm-0": the name of what holds it. */
static bool match_holder(const char *path, void *context)
{
	struct search *search = context;

	(void)snprintf(search->found, sizeof(search->found), "%.64s", strrchr(path, '/') + 1);
	return true;
}

static int find_holder(const struct subject *subject, char text[static PROBE_TEXT_BYTES])
{
	struct search search = { .subject = subject };
	char path[SYSFS_PATH_BYTES], name[VALUE_BYTES];
	int result;

	(void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/holders/*", major(subject->number),
		       minor(subject->number));
	result = search_paths(path, match_holder, &search);
	if (result != 1)
		return result;
	(void)snprintf(path, sizeof(path), "/sys/block/%.64s/dm/name", search.found);
	if (read_line(path, name))
		text_add(text, "%sheld by %s (%s)", subject->prefix, search.found, name);
	else
		text_add(text, "%sheld by %s", subject->prefix, search.found);
	return 1;
}

static int find_device_use(struct subject *subject, char text[static PROBE_TEXT_BYTES])
{
	int result = find_mount(subject, text);

	if (result == 0)
		result = find_swap(subject, text);
	if (result == 0)
		result = find_holder(subject, text);
	return result;
}

/* ".../sdb1/partition": whether that one is used. */
static bool match_partition(const char *path, void *context)
{
	struct search *search = context;
	struct subject partition = { .is_device = true, .writers = search->subject->writers };
	char name[SYSFS_PATH_BYTES], number_path[SYSFS_PATH_BYTES + 8], value[VALUE_BYTES];

	(void)snprintf(name, sizeof(name), "%s", path);
	*strrchr(name, '/') = '\0';
	(void)snprintf(number_path, sizeof(number_path), "%s/dev", name);
	if (!read_line(number_path, value) || !parse_device(value, 10, '\0', &partition.number, NULL))
		return false;
	(void)snprintf(partition.prefix, sizeof(partition.prefix), "its partition /dev/%.40s is ",
		       strrchr(name, '/') + 1);
	if (find_device_use(&partition, search->found) == 1)
		return true;
	search->reader = search->reader || partition.read_here;
	return false;
}

/* Partitions are the folders with a `partition` file in the device's own. */
static int find_partition_use(struct subject *whole, char text[static PROBE_TEXT_BYTES])
{
	struct search search = { .subject = whole };
	char pattern[SYSFS_PATH_BYTES];
	int result;

	(void)snprintf(pattern, sizeof(pattern), "/sys/dev/block/%u:%u/*/partition", major(whole->number),
		       minor(whole->number));
	result = search_paths(pattern, match_partition, &search);
	whole->read_here = whole->read_here || search.reader;
	if (result == 1)
		text_add(text, "%s", search.found);
	return result;
}

/* Which file system a path lies on, by the names of the mounts alone. */
struct mount_of_path {
	const char *path;
	size_t length; /* of the mount point found so far */
	dev_t device;
	bool is_fuse;
};

static bool match_mount_of_path(char *line, void *context)
{
	struct mount_of_path *mount = context;
	char *fields[MOUNT_FIELDS], *rest = split_mount(line, fields);
	size_t length;

	if (!rest)
		return false;
	unescape(fields[4]);
	length = strcmp(fields[4], "/") == 0 ? 0 : strlen(fields[4]);
	if (length < mount->length || strncmp(mount->path, fields[4], length) != 0 || mount->path[length] != '/')
		return false;
	mount->length = length;
	mount->is_fuse = strncmp(rest, "fuse", 4) == 0;
	if (!parse_device(fields[2], 10, '\0', &mount->device, NULL))
		mount->device = 0;
	return false; /* a longer one may follow */
}

/* Looking at a file that another program serves may mean to wait for ever; it is the subject only on the same mount. */
static bool is_served_elsewhere(const struct subject *subject, const char *path)
{
	struct mount_of_path mount = { .path = path };

	(void)search_lines("/proc/self/mountinfo", match_mount_of_path, &mount);
	return mount.is_fuse && mount.device != subject->status.st_dev;
}

/* The path of the file behind a loop device. " (deleted)" may be part of it; it tells nothing of what is there now. */
static bool match_backing(char *line, void *context)
{
	static const char suffix[] = " (deleted)";
	const struct search *search = context;
	const size_t length = strlen(line), suffix_length = sizeof(suffix) - 1;

	if (is_served_elsewhere(search->subject, line))
		return false;
	if (is_subject_path(search->subject, line))
		return true;
	if (length <= suffix_length || strcmp(line + length - suffix_length, suffix) != 0)
		return false;
	line[length - suffix_length] = '\0';
	return is_subject_path(search->subject, line);
}

/* "/sys/block/loop3/loop/backing_file": whether it says our file. */
static bool match_loop(const char *path, void *context)
{
	struct search *search = context;
	const char *name = path + strlen("/sys/block/");
	char read_only_path[SYSFS_PATH_BYTES], read_only[VALUE_BYTES];

	if (search_lines(path, match_backing, search) != 1)
		return false;
	(void)snprintf(read_only_path, sizeof(read_only_path), "/sys/block/%.*s/ro", (int)strcspn(name, "/"), name);
	if (search->subject->writers && read_line(read_only_path, read_only) && strcmp(read_only, "1") == 0)
		return false;
	(void)snprintf(search->found, sizeof(search->found), "%.*s", (int)strcspn(name, "/"), name);
	return true;
}

static int find_loop(const struct subject *subject, char text[static PROBE_TEXT_BYTES])
{
	struct search search = { .subject = subject };
	const int result = search_paths("/sys/block/loop*/loop/backing_file", match_loop, &search);

	if (result == 1)
		text_add(text, "attached to /dev/%s", search.found);
	return result;
}

/* Who has a lock on the file, or on the device's node. */
struct lock_owner {
	const struct stat *status;
	bool ours;         /* this process has one, too */
	bool found, write; /* somebody else does; it is exclusive */
	long pid;          /* -1: the kernel does not tell (an open file description's) */
};

/* A line of /proc/locks: "1: FLOCK  ADVISORY  WRITE 4711 08:02:131077 0 EOF"; those with "->" only wait for one. */
static bool match_lock(char *line, void *context)
{
	struct lock_owner *owner = context;
	const char *fields[6], *inode_text;
	char *next = NULL;
	bool write;
	dev_t device;
	long pid;

	for (unsigned i = 0; i < 6; i++) {
		fields[i] = strtok_r(i == 0 ? line : NULL, " ", &next);
		if (!fields[i])
			return false;
	}
	if (strcmp(fields[1], "FLOCK") != 0 && strcmp(fields[1], "POSIX") != 0 && strcmp(fields[1], "OFDLCK") != 0)
		return false;
	if (!parse_device(fields[5], 16, ':', &device, &inode_text) || device != owner->status->st_dev ||
	    strtoull(inode_text, NULL, 10) != owner->status->st_ino)
		return false;
	pid = strtol(fields[4], NULL, 10);
	write = strcmp(fields[3], "WRITE") == 0;
	if (pid == getpid()) {
		owner->ours = true;
	} else if (!owner->found || write) {
		owner->found = true;
		owner->pid = pid;
		owner->write = write;
	}
	return false; /* there may be more */
}

static void find_lock(const struct stat *status, struct lock_owner *owner)
{
	*owner = (struct lock_owner){ .status = status };
	(void)search_lines("/proc/locks", match_lock, owner); /* where it can't be read, it can't be told */
}

static void describe_process(long pid, const char *doing, char text[static PROBE_TEXT_BYTES])
{
	char path[SYSFS_PATH_BYTES], name[VALUE_BYTES];

	(void)snprintf(path, sizeof(path), "/proc/%ld/comm", pid);
	if (read_line(path, name))
		text_add(text, "%s process %ld (%s)", doing, pid, name);
	else
		text_add(text, "%s process %ld", doing, pid);
}

static void describe_lock(const struct lock_owner *owner, char text[static PROBE_TEXT_BYTES])
{
	if (owner->pid <= 0)
		text_add(text, "locked by another program");
	else
		describe_process(owner->pid, "locked by", text);
}

/* Whether the kernel would let us have the device for ourselves: 0 or 1, or a negative errno. */
static int is_claimed(const char *path)
{
	const int fd = open(path, O_RDONLY | O_EXCL | O_CLOEXEC | O_NONBLOCK);

	if (fd < 0)
		return errno == EBUSY ? 1 : -errno;
	(void)close(fd);
	return 0;
}

/*
 * udev takes shared locks on devices for moments, so on a device only an exclusive lock counts by itself. A claim of
 * our own (a lock of ours comes with it) is not somebody else's use. With `writers`, a claim that a read-only mount
 * or a reader's lock explains does not count.
 */
static int find_device_claim(const char *path, const struct subject *subject, char text[static PROBE_TEXT_BYTES])
{
	struct lock_owner owner;
	int claimed = 0;

	find_lock(&subject->status, &owner);
	if (!owner.ours) {
		claimed = is_claimed(path);
		if (claimed < 0)
			return claimed;
	}
	if (subject->writers && !owner.write && (owner.found || subject->read_here))
		return 0;
	if (owner.found && (owner.write || claimed)) {
		describe_lock(&owner, text);
		return 1;
	}
	if (claimed)
		text_add(text, "in use by another program");
	return claimed;
}

static int find_file_use(const struct subject *subject, char text[static PROBE_TEXT_BYTES])
{
	struct lock_owner owner;
	int result = find_swap(subject, text);

	if (result == 0)
		result = find_loop(subject, text);
	if (result != 0)
		return result;
	find_lock(&subject->status, &owner);
	if (!owner.found || (subject->writers && !owner.write))
		return 0;
	describe_lock(&owner, text);
	return 1;
}

static int probe_use(const char *path, bool writers, char text[static PROBE_TEXT_BYTES])
{
	struct subject subject = { .writers = writers };
	int result;

	text[0] = '\0';
	if (stat(path, &subject.status) < 0)
		return -errno;
	if (S_ISREG(subject.status.st_mode))
		return find_file_use(&subject, text);
	if (!S_ISBLK(subject.status.st_mode))
		return -ENOTBLK;
	subject.is_device = true;
	subject.number = subject.status.st_rdev;
	result = find_device_use(&subject, text);
	if (result == 0)
		result = find_partition_use(&subject, text);
	if (result == 0)
		result = find_device_claim(path, &subject, text);
	return result;
}

int probe_busy(const char *path, char text[static PROBE_TEXT_BYTES])
{
	return probe_use(path, false, text);
}

int probe_written(const char *path, char text[static PROBE_TEXT_BYTES])
{
	return probe_use(path, true, text);
}

struct opener_search {
	const char *path;
	char *text; /* PROBE_TEXT_BYTES */
};

/*
 * "/proc/4711/fd/3": whether that is our path, in another process than this. By its text: to look at the file itself might
 * mean to wait for whoever serves it.
 */
static bool match_descriptor(const char *path, void *context)
{
	const struct opener_search *search = context;
	char target[SYSFS_PATH_BYTES];
	long pid = strtol(path + strlen("/proc/"), NULL, 10);
	ssize_t length = readlink(path, target, sizeof(target) - 1);

	if (pid == getpid() || length < 0)
		return false;
	target[length] = '\0';
	if (strcmp(target, search->path) != 0)
		return false;
	describe_process(pid, "open in", search->text);
	return true;
}

int probe_opener(const char *path, char text[static PROBE_TEXT_BYTES])
{
	struct opener_search search = { .path = path, .text = text };

	text[0] = '\0';
	return search_paths("/proc/[0-9]*/fd/*", match_descriptor, &search);
}

/* ---- What it lies on. ---- */

#define LAYERS_MAX 64u

struct layers {
	const char *const *names;
	size_t name_count;
	const char *found;
	dev_t devices[LAYERS_MAX]; /* to be looked at, and looked at */
	size_t count;
};

static void layer_add(struct layers *layers, dev_t device)
{
	for (size_t i = 0; i < layers->count; i++)
		if (layers->devices[i] == device)
			return;
	if (layers->count < LAYERS_MAX)
		layers->devices[layers->count++] = device;
}

static bool layer_add_by_file(struct layers *layers, const char *path)
{
	char line[VALUE_BYTES];
	dev_t device;

	if (read_line(path, line) && parse_device(line, 10, '\0', &device, NULL))
		layer_add(layers, device);
	return false;
}

static bool match_slave(const char *path, void *context)
{
	return layer_add_by_file(context, path);
}

/* Where a file system has no device number of its own: the source that its mount names. */
struct mount_search {
	uint64_t id;
	dev_t device;
};

static bool match_mount_id(char *line, void *context)
{
	struct mount_search *search = context;
	char *separator = strstr(line, " - "), *source, *next = NULL;
	struct stat status;

	if (strtoull(line, NULL, 10) != search->id || separator == NULL || strtok_r(separator + 3, " ", &next) == NULL)
		return false;
	source = strtok_r(NULL, " ", &next);
	if (source == NULL)
		return false;
	unescape(source);
	if (source[0] != '/' || stat(source, &status) != 0 || !S_ISBLK(status.st_mode))
		return false;
	search->device = status.st_rdev;
	return true;
}

static bool find_source(const char *path, dev_t *device)
{
	struct mount_search search = { 0 };
	struct statx about;

	if (statx(AT_FDCWD, path, 0, STATX_MNT_ID, &about) != 0)
		return false;
	search.id = about.stx_mnt_id;
	if (search_lines("/proc/self/mountinfo", match_mount_id, &search) != 1)
		return false;
	*device = search.device;
	return true;
}

/* Whether `device` is what is mounted on a folder: it may be mounted elsewhere too (mount --bind). */
static bool is_mounted_on(const char *folder, dev_t device)
{
	struct statx about;

	return statx(AT_FDCWD, folder, 0, STATX_TYPE, &about) == 0 && S_ISDIR(about.stx_mode) &&
	       (about.stx_attributes & STATX_ATTR_MOUNT_ROOT) != 0 &&
	       makedev(about.stx_dev_major, about.stx_dev_minor) == device;
}

/* A file: it may be in one of the folders; else its file system's device is a layer. */
static void layer_add_file(struct layers *layers, const char *path)
{
	struct subject subject = { 0 };
	struct stat status;

	for (size_t i = 0; i < layers->name_count && layers->found == NULL; i++) {
		size_t length = strlen(layers->names[i]);

		if (strncmp(path, layers->names[i], length) == 0 && path[length] == '/')
			layers->found = layers->names[i];
	}
	if (layers->found != NULL || stat(path, &status) != 0)
		return;
	if (S_ISBLK(status.st_mode))
		layer_add(layers, status.st_rdev);
	for (size_t i = 0; i < layers->name_count && layers->found == NULL; i++)
		if (is_mounted_on(layers->names[i], status.st_dev))
			layers->found = layers->names[i];
	if (S_ISBLK(status.st_mode) || layers->found != NULL)
		return;
	if (major(status.st_dev) != 0)
		layer_add(layers, status.st_dev);
	else if (find_source(path, &subject.number))
		layer_add(layers, subject.number);
}

static void look_below(struct layers *layers, dev_t device)
{
	char path[SYSFS_PATH_BYTES], line[PROBE_TEXT_BYTES * 8];
	FILE *file;

	(void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/partition", major(device), minor(device));
	if (access(path, F_OK) == 0) {
		(void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/../dev", major(device), minor(device));
		(void)layer_add_by_file(layers, path);
	}
	(void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/slaves/*/dev", major(device), minor(device));
	(void)search_paths(path, match_slave, layers);
	(void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/loop/backing_file", major(device), minor(device));
	file = fopen(path, "re");
	if (file == NULL)
		return;
	if (fgets(line, (int)sizeof(line), file) != NULL) {
		line[strcspn(line, "\n")] = '\0';
		layer_add_file(layers, line);
	}
	(void)fclose(file);
}

static void match_layer(struct layers *layers, dev_t device)
{
	struct stat status;

	for (size_t i = 0; i < layers->name_count && layers->found == NULL; i++)
		if (stat(layers->names[i], &status) == 0 && S_ISBLK(status.st_mode) && status.st_rdev == device)
			layers->found = layers->names[i];
}

int probe_lies_on(const char *path, const char *const *names, size_t count, const char **found)
{
	struct layers layers = { .names = names, .name_count = count };
	char folder[PATH_MAX];

	if (strlen(path) >= sizeof(folder))
		return -ENAMETOOLONG;
	(void)snprintf(folder, sizeof(folder), "%s", path);
	if (access(path, F_OK) != 0 && strrchr(folder, '/') != NULL)
		strrchr(folder, '/')[1] = '\0';
	layer_add_file(&layers, folder);
	for (size_t i = 0; i < layers.count && layers.found == NULL; i++) {
		match_layer(&layers, layers.devices[i]);
		if (layers.found == NULL)
			look_below(&layers, layers.devices[i]);
	}
	*found = layers.found;
	return layers.found != NULL;
}
