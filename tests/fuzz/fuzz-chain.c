/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A set of stores, opened as the tools and the server open them: damaged, or made up by somebody who knows the checksums.
 *
 * The engine itself makes a volume at the start: an origin and the stores of the snapshots x, y and z, as a clean stop
 * leaves them, and as a crash does: while serving, in the midst of y's fold, and of a merge. An input takes one of these
 * (enum image), changes it (enum change), and says which stores are given, in which order, and what is done with them
 * (USE_...).
 *
 * By its first byte an input is of one of two kinds. In damage, nothing is put right, and the clean stores are taken: then
 *
 *   1. what is read of a snapshot is what was there when it was taken, or an error; by the tools, after a repair (cut
 *      short by a power failure, too), and by a server, which may go on writing to the origin. So is the origin after a
 *      merge (cut short, too) that says it is done; and what diff leaves out is the same.
 *
 * In malice, checksums of what was changed are put right. Then what a snapshot should be nobody knows. In either case
 *
 *   2. whoever only looks writes nothing, and finds the same again
 *   3. where check finds neither faults nor what it cannot read, and the chain opens, every block can be read that is not
 *      marked as lost; and where it is told that nothing is broken, all of them
 *   4. what repair has mended needs no second repair, where the disk is sound
 *   5. a file does not grow out of proportion, and nothing is left open
 */
#include "core/check.h"
#include "core/diff.h"
#include "core/merge.h"
#include "core/metadata.h"
#include "core/offline.h"
#include "core/opening.h"
#include "core/repair.h"
#include "core/survey.h"
#include "format/bytes.h"
#include "io/log.h"
#include "tests/fuzz/memory-world.h"

#include <xxhash.h>

#define BLOCK_BYTES 4096u
#define BLOCKS 64u
#define ORIGIN_BYTES (BLOCKS * BLOCK_BYTES)
#define STORES 3u
#define PER_AREA 4u
#define AREA_BYTES (2 * AREA_META_BYTES + PER_AREA * BLOCK_BYTES)
#define SIZE_MAX_BYTES (UINT64_C(8) << 20)
#define CHANGES_MAX 24
#define ROUNDS_MAX 100000
#define FINDINGS_MAX 20000

enum {
	USE_CHECK = 1,
	USE_READ = 2,
	USE_REPAIR = 4,
	USE_SERVE = 8,
	USE_QUICK = 16, /* check reads no data */
	USE_MERGE = 32,
	USE_DIFF = 64,
};

#define MALICE 1u
#define EXACT 64u /* diff compares */
/* In malice, the first byte's next two bits: what it is that is changed. */
enum image { IMAGE_CLEAN, IMAGE_CRASHED, IMAGE_FOLD, IMAGE_MERGE, IMAGE_COUNT };

enum change {
	CHANGE_BYTES,    /* u8 store, u8 spot, u8 which, u16 offset, u8 count, bytes: these come instead */
	CHANGE_BITS,     /* the same; these are exclusive-or'ed */
	CHANGE_TRUNCATE, /* u8 store, u16 KiB */
	CHANGE_BAD,      /* u8 store, u16 KiB, u8 KiB: cannot be read */
	CHANGE_SWAP,     /* u8 store, u8 spot, u8 which, u8 other store: malice only: what is there changes places */
	CHANGE_POWER,    /* u8: writes until the power fails */
	CHANGE_COUNT,
};

/* What a change is made to. */
enum spot {
	SPOT_SUPERBLOCK,      /* which: the copy, or (2, 3) both */
	SPOT_HEADER,          /* which: the area; the highest bits: the copy, or both */
	SPOT_ENTRY,           /* which: the slot, likewise */
	SPOT_DATA,            /* which: the slot */
	SPOT_ANYWHERE,        /* which: of 4 KiB */
	SPOT_COUNT,
};

static const char *const names[STORES + 1] = { "/origin", "/x", "/y", "/z" };

static struct {
	uint8_t *files[STORES + 1];
	uint64_t sizes[STORES + 1];
} images[IMAGE_COUNT];
static uint8_t truths[STORES][ORIGIN_BYTES]; /* what the snapshots were when they were taken */

static struct disk_host *host;

/* ---- the volume that all begins with ---- */

static struct export_table exports;

struct waiting {
	struct request request;
	struct operation operation;
	bool done;
	int error;
};

static void request_done(struct request *request, int error)
{
	struct waiting *waiting = request->context;

	waiting->done = true;
	waiting->error = error;
}

static void operation_done(struct operation *operation, int error)
{
	struct waiting *waiting = operation->context;

	waiting->done = true;
	waiting->error = error;
}

static int wait_for(struct volume *volume, struct waiting *waiting)
{
	for (unsigned rounds = 0; !waiting->done; rounds++) {
		fuzz_check("what was asked for comes to its end", rounds < ROUNDS_MAX);
		(void)disk_host_poll(host);
		volume_turn(volume);
	}
	return waiting->error;
}

static int run_request(struct volume *volume, struct export *export, enum request_op op, uint64_t offset, uint64_t length,
		       uint8_t *buffer)
{
	struct waiting waiting = { .done = false };

	waiting.request = (struct request){
		.op = op, .offset = offset, .length = length, .buffer = buffer, .export = export,
		.complete = request_done, .context = &waiting,
	};
	export_submit(&waiting.request);
	return wait_for(volume, &waiting);
}

static void take_snapshot(struct volume *volume, const char *name, const char *path)
{
	struct waiting waiting = { .operation = { .done = operation_done } };

	waiting.operation.context = &waiting;
	volume_snapshot(volume, &waiting.operation, name, path);
	if (wait_for(volume, &waiting) != 0)
		abort();
}

static int stop(struct volume *volume)
{
	struct waiting waiting = { .operation = { .done = operation_done } };

	waiting.operation.context = &waiting;
	volume_stop(volume, &waiting.operation);
	return wait_for(volume, &waiting);
}

static int open_volume(const char *const *paths, size_t count, struct volume **volume)
{
	static const struct volume_options options = { .name = "fuzz", .state_directory = "/nowhere" };
	struct complaint complaint;
	int error;

	export_table_init(&exports);
	error = volume_open(host, &exports, names[0], paths, count, &options, volume, &complaint);
	fuzz_check("a refusal has its reason", error == 0 || complaint.why[0] != '\0');
	return error;
}

/* Block `block` as it is written for the time `time`: some are all zeroes. */
static void fill_block(uint8_t *out, unsigned block, unsigned time)
{
	memset(out, block % 8 == 3 ? 0 : (int)(block * 3 + time * 64 + 1), BLOCK_BYTES);
	if (block % 8 != 3)
		put_u32(out, block << 8 | time);
}

static void write_blocks(struct volume *volume, unsigned first, unsigned count, unsigned time)
{
	uint8_t *buffer = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES);

	if (buffer == NULL)
		abort();
	for (unsigned block = first; block < first + count; block++) {
		fill_block(buffer, block, time);
		if (run_request(volume, &volume->origin_export, REQUEST_WRITE, (uint64_t)block * BLOCK_BYTES, BLOCK_BYTES,
				buffer) != 0)
			abort();
	}
	free(buffer);
}

static void save_image(enum image image)
{
	for (unsigned i = 0; i <= STORES; i++) {
		images[image].sizes[i] = memory_files[i].size;
		images[image].files[i] = malloc((size_t)memory_files[i].size);
		if (images[image].files[i] == NULL)
			abort();
		memcpy(images[image].files[i], memory_files[i].bytes, (size_t)memory_files[i].size);
	}
}

static void make_images(void)
{
	struct volume *volume;
	struct disk *disk;
	uuid128_t uuid;

	memory_world_begin(SIZE_MAX_BYTES);
	(void)memory_file_make(0, names[0], ORIGIN_BYTES);
	for (unsigned block = 0; block < BLOCKS; block++)
		fill_block(memory_files[0].bytes + (size_t)block * BLOCK_BYTES, block, 0);
	for (unsigned i = 1; i <= STORES; i++) {
		(void)memory_file_make(i, names[i], 0);
		if (disk_open(host, names[i], 0, &disk) != 0 ||
		    store_format_wait(host, disk, BLOCK_BYTES, 0, PER_AREA, &uuid) != 0)
			abort();
		disk_close(disk);
	}
	if (open_volume(NULL, 0, &volume) != 0)
		abort();
	for (unsigned i = 1; i <= STORES; i++) {
		memcpy(truths[i - 1], memory_files[0].bytes, ORIGIN_BYTES);
		take_snapshot(volume, names[i] + 1, names[i]);
		write_blocks(volume, i - 1, 3, i);   /* the fingerprinted area */
		write_blocks(volume, 16 * i, 7, i);
		write_blocks(volume, 20, 2, i);
	}
	save_image(IMAGE_CRASHED);
	if (stop(volume) != 0)
		abort();
	save_image(IMAGE_CLEAN);
	volume_close(volume);
}

static void restore_image(enum image image)
{
	memory_world_begin(SIZE_MAX_BYTES);
	for (unsigned i = 0; i <= STORES; i++) {
		struct memory_file *file = &memory_files[i];

		memory_resize(file, images[image].sizes[i]);
		memcpy(file->bytes, images[image].files[i], (size_t)file->size);
		file->bad_from = 0;
		file->bad_to = 0;
	}
}

/* When it has got so far that some of it is moved, all that was written is what a crash would leave. */
static void make_fold_image(void)
{
	struct waiting waiting = { .operation = { .done = operation_done } };
	struct volume *volume;
	uint64_t start;

	restore_image(IMAGE_CLEAN);
	if (open_volume(&names[1], STORES, &volume) != 0)
		abort();
	start = memory_writes;
	waiting.operation.context = &waiting;
	volume_drop(volume, &waiting.operation, names[2] + 1, false);
	while (!waiting.done && memory_writes < start + 6) {
		volume_turn(volume);
		(void)disk_host_poll(host);
	}
	if (waiting.done)
		abort();
	save_image(IMAGE_FOLD);
	if (wait_for(volume, &waiting) != 0 || stop(volume) != 0)
		abort();
	volume_close(volume);
}

static void ignore_progress(enum merge_stage stage, uint64_t done, uint64_t total, void *context)
{
	(void)stage;
	(void)context;
	fuzz_check("what is done is no more than there is", done <= total);
}

static bool is_never_cancelled(void *context)
{
	(void)context;
	return false;
}

static int merge_to(const char *name, const char *const *paths, size_t count)
{
	const struct merge_options options = {
		.snapshot = name,
		.state_directory = "/nowhere",
		.progress = ignore_progress,
		.is_cancelled = is_never_cancelled,
	};
	struct merge_report *report = calloc(1, sizeof(*report));
	struct complaint complaint;
	int error;

	if (report == NULL)
		abort();
	error = merge_run(host, names[0], paths, count, &options, report, &complaint);
	fuzz_check("a merge that fails says why", error == 0 || complaint.why[0] != '\0');
	free(report);
	return error;
}

static void make_merge_image(void)
{
	restore_image(IMAGE_CLEAN);
	memory_power = 10;
	if (merge_to(names[2] + 1, &names[1], STORES) == 0 || memcmp(memory_files[0].bytes, images[0].files[0], ORIGIN_BYTES) == 0)
		abort();
	save_image(IMAGE_MERGE);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc;
	(void)argv;
	log_silence();
	if (disk_host_create(64, &host) != 0)
		abort();
	make_images();
	make_fold_image();
	make_merge_image();
	return 0;
}

/* ---- an input's stores ---- */

static struct {
	unsigned kind, uses;
	enum image image;
	const char *paths[STORES];
	size_t count;
	uint8_t power;
	bool has_power;
} given;

/* Which stores are given, in which order: each of the byte's three pairs of bits names one, or none. */
static void choose_stores(uint8_t byte)
{
	static const uint8_t usual = 0x39; /* x, y, z */

	if (byte == 0)
		byte = usual;
	given.count = 0;
	for (unsigned i = 0; i < STORES; i++)
		if ((byte >> 2 * i & 3) != 0)
			given.paths[given.count++] = names[byte >> 2 * i & 3];
}

static const struct geometry geometry = { BLOCK_BYTES, PER_AREA, FIRST_AREA_OFFSET };

/* The byte where the spot is, in the copy that is meant. False: there is none. */
static bool spot_offset(enum spot spot, uint8_t which, unsigned copy, uint64_t *offset, size_t *bytes)
{
	uint32_t slot = which % 64;

	*bytes = BLOCK_BYTES;
	switch (spot) {
	case SPOT_SUPERBLOCK:
		*offset = copy == 0 ? SUPERBLOCK_OFFSET_0 : SUPERBLOCK_OFFSET_1;
		return which >= 2 || which == copy;
	case SPOT_HEADER:
		*offset = geometry_meta_offset(&geometry, slot / PER_AREA, copy);
		*bytes = AREA_HEADER_BYTES;
		return which >= 128 || (which >= 64) == copy;
	case SPOT_ENTRY:
		*offset = geometry_meta_offset(&geometry, slot / PER_AREA, copy) + AREA_HEADER_BYTES +
			  (uint64_t)(slot % PER_AREA) * ENTRY_BYTES;
		*bytes = ENTRY_BYTES;
		return which >= 128 || (which >= 64) == copy;
	case SPOT_DATA:
		*offset = geometry_slot_offset(&geometry, SLOT(slot));
		return copy == 0;
	case SPOT_ANYWHERE:
	case SPOT_COUNT:
		break;
	}
	*offset = (uint64_t)which * 4096;
	return copy == 0;
}

/* Makes the checksum of what lies there right, for the store as its superblock is now. */
static void put_right(uint8_t *file, enum spot spot, uint64_t offset, uint8_t which)
{
	uint8_t *at = file + offset, input[20];
	uint32_t slot = which % 64;
	uuid128_t uuid;
	uint64_t seed;

	memcpy(uuid.bytes, file + 48, sizeof(uuid.bytes));
	seed = checksum_seed(&uuid);
	switch (spot) {
	case SPOT_SUPERBLOCK:
		put_u64(at + SUPERBLOCK_BYTES - 8, XXH3_64bits(at, SUPERBLOCK_BYTES - 8));
		break;
	case SPOT_HEADER:
		put_u32(at + 28, data_checksum(seed, at, 28));
		break;
	case SPOT_ENTRY:
		put_u32(input, slot / PER_AREA);
		put_u32(input + 4, slot % PER_AREA);
		memcpy(input + 8, at, 12);
		put_u32(at + 12, data_checksum(seed, input, sizeof(input)));
		break;
	case SPOT_DATA:
	case SPOT_ANYWHERE:
	case SPOT_COUNT:
		break;
	}
}

static void change_bytes(struct fuzz_input *input, bool bits)
{
	struct memory_file *file = &memory_files[fuzz_u8(input) % STORES + 1];
	enum spot spot = fuzz_u8(input) % SPOT_COUNT;
	uint8_t which = fuzz_u8(input), bytes[64];
	uint16_t from = fuzz_u16(input);
	size_t count = fuzz_u8(input) % sizeof(bytes) + 1, there;
	uint64_t offset;

	fuzz_take(input, bytes, count);
	for (unsigned copy = 0; copy < 2; copy++) {
		if (!spot_offset(spot, which, copy, &offset, &there) || offset + there > file->size)
			continue;
		for (size_t i = 0; i < count; i++) {
			uint8_t *at = file->bytes + offset + (from + i) % there;

			*at = bits ? *at ^ bytes[i] : bytes[i];
		}
		if (given.kind & MALICE)
			put_right(file->bytes, spot, offset, which);
	}
}

static void change_swap(struct fuzz_input *input)
{
	struct memory_file *file = &memory_files[fuzz_u8(input) % STORES + 1];
	enum spot spot = fuzz_u8(input) % SPOT_COUNT;
	uint8_t which = fuzz_u8(input);
	struct memory_file *other = &memory_files[fuzz_u8(input) % STORES + 1];
	uint8_t saved[BLOCK_BYTES];
	uint64_t offset;
	size_t there;

	for (unsigned copy = 0; copy < 2; copy++) {
		if (!(given.kind & MALICE) || !spot_offset(spot, which, copy, &offset, &there) ||
		    offset + there > file->size || offset + there > other->size)
			continue;
		memcpy(saved, file->bytes + offset, there);
		memcpy(file->bytes + offset, other->bytes + offset, there);
		memcpy(other->bytes + offset, saved, there);
		put_right(file->bytes, spot, offset, which);
		put_right(other->bytes, spot, offset, which);
	}
}

static void change(struct fuzz_input *input)
{
	enum change change = fuzz_u8(input) % CHANGE_COUNT;
	struct memory_file *file;

	switch (change) {
	case CHANGE_BYTES:
	case CHANGE_BITS:
		change_bytes(input, change == CHANGE_BITS);
		break;
	case CHANGE_TRUNCATE:
		file = &memory_files[fuzz_u8(input) % STORES + 1];
		memory_resize(file, (uint64_t)fuzz_u16(input) % 2048 * 1024);
		break;
	case CHANGE_BAD:
		file = &memory_files[fuzz_u8(input) % STORES + 1];
		file->bad_from = (uint64_t)fuzz_u16(input) % 2048 * 1024;
		file->bad_to = file->bad_from + (uint64_t)fuzz_u8(input) * 1024;
		break;
	case CHANGE_SWAP:
		change_swap(input);
		break;
	case CHANGE_POWER:
	case CHANGE_COUNT:
		given.power = fuzz_u8(input);
		given.has_power = true;
		break;
	}
}

/* ---- what is read ---- */

static bool is_known(const char *name, size_t *index)
{
	for (*index = 0; *index < STORES; (*index)++)
		if (strcmp(names[*index + 1] + 1, name) == 0)
			return true;
	return false;
}

/* Damage may lose what a snapshot was, and not change it. */
static void check_truth(const char *name, const uint8_t *bytes, uint64_t offset, uint64_t length)
{
	size_t index;

	if (given.kind & MALICE)
		return;
	fuzz_check("a snapshot's name is one of those taken", is_known(name, &index));
	fuzz_check("a snapshot reads as it was", memcmp(bytes, truths[index] + offset, (size_t)length) == 0);
}

static struct {
	uint64_t unreadable, marked; /* blocks; of these, known to be lost, or not preserved */
	bool fault, unreadable_found, broken;
} seen;

static int found_fault(const struct offline_fault *fault, void *context)
{
	char text[OFFLINE_FAULT_TEXT_BYTES];

	(void)context;
	offline_fault_text(fault, text);
	fuzz_check("a fault has a text", memchr(text, '\0', sizeof(text)) != NULL && text[0] != '\0');
	seen.unreadable += fault->count;
	if (fault->kind == FAULT_LOST || fault->kind == FAULT_BROKEN)
		seen.marked += fault->count;
	return 0;
}

static void read_point(struct offline *offline, size_t point, uint8_t *buffer)
{
	const char *name = offline_point_name(offline, point);
	uint64_t block_bytes = offline->volume->block_bytes;

	if (point < offline->volume->chain_count && offline->volume->chain[point]->dropping)
		return;
	for (uint64_t offset = 0; offset < ORIGIN_BYTES; offset += block_bytes) {
		uint64_t length = ORIGIN_BYTES - offset < block_bytes ? ORIGIN_BYTES - offset : block_bytes;

		memset(buffer, 0xdb, (size_t)length);
		if (offline_read_wait(offline, point, buffer, offset, length) != 0)
			(void)offline_salvage(offline, point, buffer, offset, length, found_fault, NULL);
		else if (point < offline->volume->chain_count)
			check_truth(name, buffer, offset, length);
	}
}

static void survey_entry(slot_t slot, const struct entry *entry, void *context)
{
	(void)context;
	fuzz_check("a survey tells of what is in range", slot.index < SLOT_INDEX_MAX &&
								 strcmp(entry_type_text(entry->type), "unknown") != 0);
}

static void survey_chain(const struct volume *volume)
{
	for (size_t i = 0; i < volume->chain_count; i++) {
		struct survey survey = { .entry = survey_entry };
		struct survey_extents extents;

		if (survey_store(volume->chain[i]->store, &survey) == 0)
			survey_extents(volume->chain[i]->store, &extents);
		seen.broken = seen.broken || store_is_broken(volume->chain[i]->store);
	}
}

/* ---- what is compared ---- */

struct ranges {
	uint64_t end; /* of the last one */
	bool listed[BLOCKS];
};

static void found_range(uint64_t offset, uint64_t length, void *context)
{
	struct ranges *ranges = context;

	fuzz_check("ranges come in order, apart, and lie on the origin",
		   length > 0 && (offset > ranges->end || ranges->end == 0) && offset < ORIGIN_BYTES &&
			   length <= ORIGIN_BYTES - offset);
	ranges->end = offset + length;
	for (uint64_t block = offset / BLOCK_BYTES; block * BLOCK_BYTES < ranges->end; block++)
		ranges->listed[block] = true;
}

static const uint8_t *point_truth(const struct offline *offline, size_t point)
{
	size_t index;

	if (point == offline->volume->chain_count)
		return memory_files[0].bytes;
	fuzz_check("a snapshot's name is one of those taken", is_known(offline_point_name(offline, point), &index));
	return truths[index];
}

static void diff_points(struct offline *offline, size_t from, size_t to, bool exact)
{
	struct ranges ranges = { .end = 0 };
	const struct diff_options options = {
		.from = from, .to = to, .exact = exact, .range = found_range, .context = &ranges
	};
	struct complaint complaint;

	if (diff_check(offline, &options, &complaint) != 0 || diff_run(offline, &options, &complaint) != 0 ||
	    given.kind & MALICE)
		return;
	for (size_t block = 0; block < BLOCKS; block++) {
		bool differs = memcmp(point_truth(offline, from) + block * BLOCK_BYTES,
				      point_truth(offline, to) + block * BLOCK_BYTES, BLOCK_BYTES) != 0;

		fuzz_check("what is left out is the same", ranges.listed[block] || !differs);
		fuzz_check("what differs is told, exactly", !exact || ranges.listed[block] == differs);
	}
}

/* As replay, diff and inspect do. True: the chain opened. */
static bool read_offline(uint8_t *buffer)
{
	static const struct offline_options options = { .state_directory = "/nowhere" };
	struct offline *offline;
	struct complaint complaint;
	uint64_t writes = memory_writes;
	int error = offline_open(host, names[0], given.paths, given.count, &options, &offline, &complaint);

	fuzz_check("a refusal says what, and why", error == 0 || (complaint.what[0] != '\0' && complaint.why[0] != '\0'));
	if (error == 0) {
		for (size_t point = 0; point <= offline->volume->chain_count; point++)
			read_point(offline, point, buffer);
		survey_chain(offline->volume);
		for (size_t from = 0; given.uses & USE_DIFF && from < offline->volume->chain_count; from++)
			for (size_t to = from + 1; to <= offline->volume->chain_count; to++)
				diff_points(offline, from, to, given.kind & EXACT);
		offline_close(offline);
	}
	fuzz_check("who looks writes nothing", memory_writes == writes && !memory_wrote_read_only);
	return error == 0;
}

/* ---- check and repair ---- */

struct look {
	struct repair *repair; /* NULL: only look */
	uint64_t findings, sum;
};

static void found(const struct check_finding *finding, void *context)
{
	const struct check_kind *kind = check_kind(finding->code);
	struct look *look = context;

	look->findings++;
	look->sum = look->sum * 31 + XXH3_64bits(finding->text, strlen(finding->text)) + (uint64_t)finding->code;
	fuzz_check("there is an end of findings", look->findings < FINDINGS_MAX);
	fuzz_check("a finding has its kind and its text", kind->code != NULL && finding->text[0] != '\0');
	seen.fault = seen.fault || kind->severity == CHECK_FAULT;
	seen.unreadable_found = seen.unreadable_found || kind->severity == CHECK_UNREADABLE;
	seen.broken = seen.broken || finding->code == FOUND_SNAPSHOT_BROKEN;
	if (look->repair != NULL)
		repair_note(look->repair, finding);
}

/* Looks at the stores given; with a plan, repairs the first. 0 or an error. */
static int look_at(struct look *look, bool carry_out)
{
	struct check_store stores[STORES] = { 0 };
	struct check check = {
		.host = host, .stores = stores, .count = given.count, .quick = (given.uses & USE_QUICK) != 0,
		.found = found, .context = look,
	};
	int error;

	look->findings = 0;
	look->sum = 0;
	for (size_t i = 0; i < given.count; i++) {
		bool first = carry_out && i == 0;

		stores[i].links_only = look->repair != NULL && i > 0;
		if (store_open(host, given.paths[i], first ? DISK_OPEN_LOCK : DISK_OPEN_READ_ONLY, &stores[i].store) != 0)
			abort();
	}
	if (look->repair != NULL)
		*look->repair = (struct repair){ .one = &stores[0] };
	error = check_run(&check);
	for (size_t i = 0; i < given.count; i++)
		seen.fault = seen.fault || stores[i].load_error != 0;
	if (error == 0 && carry_out && repair_is_planned(look->repair))
		error = repair_carry_out(look->repair);
	check_end(&check);
	for (size_t i = 0; i < given.count; i++)
		store_close(stores[i].store);
	return error;
}

static void check_twice(void)
{
	struct look first = { 0 }, second = { 0 };
	uint64_t writes = memory_writes;

	fuzz_check("a check comes to its end", look_at(&first, false) == 0 && look_at(&second, false) == 0);
	fuzz_check("what is found is found again", first.findings == second.findings && first.sum == second.sum);
	fuzz_check("who looks writes nothing", memory_writes == writes && !memory_wrote_read_only);
}

/* Writing does not cure them here. */
static bool has_bad_sectors(void)
{
	for (unsigned i = 1; i <= STORES; i++)
		if (memory_files[i].bad_to > 0)
			return true;
	return false;
}

static void repair_first(void)
{
	struct repair repair;
	struct look look = { .repair = &repair };
	int error;

	if (given.has_power) {
		memory_power = memory_writes + given.power;
		memory_torn_sectors = given.power % 9;
	}
	error = look_at(&look, true);
	repair_end(&repair);
	if (memory_dead) {
		memory_dead = false;
		memory_power = UINT64_MAX;
		error = look_at(&look, true);
		repair_end(&repair);
	}
	memory_power = UINT64_MAX;
	if (error != 0)
		return;
	fuzz_check("a repaired store can be looked at", look_at(&look, false) == 0);
	fuzz_check("what is repaired needs no repair", !repair_is_planned(&repair) || has_bad_sectors());
	repair_end(&repair);
}

/* ---- serving ---- */

static void read_served(struct volume *volume, uint8_t *buffer)
{
	for (size_t i = 0; i < volume->chain_count; i++) {
		struct export *export = &volume->chain[i]->export;

		for (uint64_t offset = 0; offset < ORIGIN_BYTES && !volume->chain[i]->dropping; offset += BLOCK_BYTES)
			if (run_request(volume, export, REQUEST_READ, offset, BLOCK_BYTES, buffer) == 0)
				check_truth(export->name, buffer, offset, BLOCK_BYTES);
	}
}

static void serve(uint8_t *buffer)
{
	struct volume *volume;

	if (open_volume(given.paths, given.count, &volume) != 0)
		return;
	read_served(volume, buffer);
	for (unsigned block = 0; block < BLOCKS; block += 5) {
		fill_block(buffer, block, 9);
		/* It may fail: with -EIO where what is there cannot be preserved. */
		(void)run_request(volume, &volume->origin_export, REQUEST_WRITE, (uint64_t)block * BLOCK_BYTES, BLOCK_BYTES,
				  buffer);
	}
	read_served(volume, buffer);
	(void)stop(volume);
	volume_close(volume);
}

/* ---- merging ---- */

static void merge(void)
{
	size_t target = given.power % STORES;
	int error;

	memory_power = given.has_power ? memory_writes + given.power / STORES : UINT64_MAX;
	error = merge_to(names[target + 1] + 1, given.paths, given.count);
	if (memory_dead) {
		memory_dead = false;
		memory_power = UINT64_MAX;
		error = merge_to(names[target + 1] + 1, given.paths, given.count);
	}
	memory_power = UINT64_MAX;
	if (error == 0 && !(given.kind & MALICE))
		fuzz_check("a merge puts the origin back", memcmp(memory_files[0].bytes, truths[target], ORIGIN_BYTES) == 0);
}

static void use(uint8_t *buffer)
{
	bool opened;

	if (given.uses & USE_CHECK)
		check_twice();
	if (given.uses & USE_READ) {
		opened = read_offline(buffer);
		if (opened && (given.uses & (USE_CHECK | USE_QUICK)) == USE_CHECK && !seen.fault && !seen.unreadable_found)
			fuzz_check("where nothing is wrong all can be read that is not marked as lost",
				   seen.unreadable == seen.marked);
	}
	if (given.uses & USE_REPAIR) {
		repair_first();
		(void)read_offline(buffer);
	}
	if (given.uses & USE_MERGE)
		merge();
	if (given.uses & USE_SERVE)
		serve(buffer);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input input = { data, size };
	int descriptor = fuzz_free_descriptor();
	uint8_t *buffer = aligned_alloc(BLOCK_BYTES, BLOCK_BYTES_MAX);

	if (buffer == NULL)
		abort();
	memset(&given, 0, sizeof(given));
	memset(&seen, 0, sizeof(seen));
	given.kind = fuzz_u8(&input);
	given.image = given.kind & MALICE ? given.kind / 2 % IMAGE_COUNT : IMAGE_CLEAN;
	given.uses = fuzz_u8(&input);
	choose_stores(fuzz_u8(&input));
	restore_image(given.image);
	for (int i = 0; i < CHANGES_MAX && input.left > 0; i++)
		change(&input);
	if (given.count > 0)
		use(buffer);
	for (unsigned i = 0; i <= STORES; i++)
		fuzz_check("a file does not grow out of proportion", memory_files[i].size <= SIZE_MAX_BYTES);
	fuzz_check("no descriptor is left", fuzz_free_descriptor() == descriptor);
	free(buffer);
	return 0;
}
