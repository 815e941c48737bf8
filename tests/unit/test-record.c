/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The volume's record: what is saved is found again; what is damaged is passed over. */
#include "core/record.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/chain.h"
#include "tests/unit/memory-fails.h"
#include "tests/unit/unit.h"

static char directory[] = "/tmp/rowsnap-record-XXXXXX";

static uuid128_t id(uint8_t number)
{
	uuid128_t uuid = { { 0 } };

	memset(uuid.bytes, number, sizeof(uuid.bytes));
	return uuid;
}

static void path_of(uint8_t number, char path[static 128])
{
	uuid128_t uuid = id(number);
	char text[UUID_TEXT_BYTES];

	uuid_text(&uuid, text);
	(void)snprintf(path, 128, "%s/%s.json", directory, text);
}

static void put(uint8_t number, const char *text)
{
	char path[128];
	FILE *file;

	path_of(number, path);
	file = fopen(path, "w");
	if (file == NULL)
		return;
	(void)fputs(text, file);
	(void)fclose(file);
}

/* A second volume's record with the same origin path. */
static void other_volume(const struct record *record, const uuid128_t *nil)
{
	struct record *other, *found = NULL;
	uuid128_t uuid = id(7);
	char path[128];

	if (record_create(directory, record->origin_path, &uuid, &other) != 0 || record_save(other) != 0)
		return;
	record_disown(other);
	check("an origin path belongs to one record: the latest",
	      record_find(directory, record->origin_path, nil, &found) == 0 && uuid_equal(&found->volume_uuid, &uuid));
	record_destroy(found);
	record_destroy(other);
	path_of(7, path);
	(void)unlink(path);
}

static void round_trip(void)
{
	uuid128_t volume = id(1), first = id(2), second = id(3), nil = id(0);
	struct record *record, *found = NULL;
	int error = record_create(directory, "/images/a \"quoted\" name.img", &volume, &record);

	check("a record is made", error == 0);
	if (error != 0)
		return;
	error = record_add(record, &first, "mon", "/stores/mon", 5);
	error = error != 0 ? error : record_add(record, &second, "tue", "/stores/tue", 6);
	record->stores[1].broken = (struct broken_mark){ BROKEN_FULL, 77 };
	record->merging_uuid = second;
	check("and saved", error == 0 && record_save(record) == 0);
	error = record_find(directory, record->origin_path, &nil, &found);
	check("found by the origin's path", error == 0);
	if (error == 0) {
		check("with all it had", found->store_count == 2 && uuid_equal(&found->volume_uuid, &volume) &&
						 strcmp(found->stores[0].name, "mon") == 0 &&
						 strcmp(found->stores[1].path, "/stores/tue") == 0 &&
						 found->stores[1].created_ns == 6 &&
						 found->stores[1].broken.reason == BROKEN_FULL &&
						 found->stores[1].broken.time_ns == 77 &&
						 uuid_equal(&found->merging_uuid, &second));
		record_remove(found, &first);
		check("a store can be taken out", found->store_count == 1 && record_store_find(found, &first) == NULL &&
							  record_store_find(found, &second) != NULL);
		record_destroy(found);
	}
	found = NULL;
	check("found by the volume's UUID", record_find(directory, "/elsewhere", &volume, &found) == 0);
	record_destroy(found);
	other_volume(record, &nil);
	check("not found under another path", record_find(directory, "/elsewhere", &nil, &found) == -ENOENT);
	record_destroy(record);
}

static void damaged(void)
{
	static const char *const texts[] = {
		"", "{", "[]", "null", "{}", "{\"uuid\":5,\"origin\":\"/x\",\"stores\":[]}",
		"{\"uuid\":\"zz\",\"origin\":\"/x\",\"stores\":[]}",
		"{\"uuid\":\"01010101-0101-0101-0101-010101010101\",\"origin\":\"/x\"}",
		"{\"uuid\":\"01010101-0101-0101-0101-010101010101\",\"origin\":\"/x\",\"stores\":[5]}",
		"{\"uuid\":\"01010101-0101-0101-0101-010101010101\",\"origin\":\"/x\",\"merging\":\"x\",\"stores\":[]}",
		"{\"uuid\":\"01010101-0101-0101-0101-010101010101\",\"origin\":\"/x\",\"merging\":true,\"stores\":[]}",
		("{\"uuid\":\"01010101-0101-0101-0101-010101010101\",\"origin\":\"/x\",\"stores\":"
		 "[{\"uuid\":\"02020202-0202-0202-0202-020202020202\",\"name\":\"../up\",\"path\":\"/p\"}]}"),
		("{\"uuid\":\"01010101-0101-0101-0101-010101010101\",\"origin\":\"/x\",\"stores\":"
		 "[{\"uuid\":\"02020202-0202-0202-0202-020202020202\",\"name\":\"m\",\"path\":\"/p\",\"broken_reason\":99}]}"),
		"{\"uuid\":\"01010101-0101-0101-0101-010101010101\",\"origin\":\"/x\",\"stores\":[],\"parts\":5}",
		"{\"uuid\":\"01010101-0101-0101-0101-010101010101\",\"origin\":\"/x\",\"stores\":[],\"parts\":[{}]}",
		("{\"uuid\":\"01010101-0101-0101-0101-010101010101\",\"origin\":\"/x\",\"stores\":[],\"parts\":"
		 "[{\"uuid\":\"03030303-0303-0303-0303-030303030303\",\"path\":\"/p\","
		 "\"store\":\"02020202-0202-0202-0202-020202020202\"}]}"),
	};
	uuid128_t nil = id(0);
	unsigned wrong = 0;
	char path[128];

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
		struct record *found = NULL;

		put(9, texts[i]);
		if (record_find(directory, "/x", &nil, &found) != -EUCLEAN)
			wrong++;
	}
	path_of(9, path);
	(void)unlink(path);
	check("damaged records are passed over, whatever is in them, and that is told", wrong == 0);
}

static uuid128_t numbered(size_t number)
{
	uuid128_t uuid = id(0xee);

	memcpy(uuid.bytes, &number, sizeof(number));
	return uuid;
}

static void changes(void)
{
	uuid128_t volume = id(1), one = id(2), other = id(3);
	struct record *record;

	if (record_create(directory, "/x", &volume, &record) != 0)
		return;
	check("stores are in the order of their making, whenever they are added",
	      record_add(record, &one, "tue", "/tue", 6) == 0 && record_add(record, &other, "mon", "/mon", 5) == 0 &&
		      strcmp(record->stores[0].name, "mon") == 0 && strcmp(record->stores[1].name, "tue") == 0);
	check("a store that is known is seen somewhere else",
	      record_add(record, &one, "tue", "/elsewhere", 6) == 0 && record->store_count == 2 &&
		      strcmp(record_store_find(record, &one)->path, "/elsewhere") == 0);
	check("the origin, too", record_set_origin(record, "/y") == 0 && strcmp(record->origin_path, "/y") == 0);
	record_remove(record, &volume);
	check("who is not there can't be taken out", record->store_count == 2);
	record_remove(record, &other);
	check("the others stay", record->store_count == 1 && record_store_find(record, &one) != NULL);
	record_destroy(record);
	record_destroy(NULL);
}

static void bounds(void)
{
	uuid128_t volume = id(1), one = id(2);
	struct record *record;
	char path[PATH_MAX + 1];
	unsigned refused = 0;

	if (record_create(directory, "/x", &volume, &record) != 0)
		return;
	memset(path, 'p', PATH_MAX);
	path[PATH_MAX] = '\0';
	check("a path of PATH_MAX bytes is too long",
	      record_add(record, &one, "mon", path, 5) == -ENAMETOOLONG && record->store_count == 0);
	path[PATH_MAX - 1] = '\0';
	check("one of a byte less is not", record_add(record, &one, "mon", path, 5) == 0 &&
						   strcmp(record->stores[0].path, path) == 0);
	for (size_t i = 1; i < RECORD_STORES_MAX; i++) {
		uuid128_t uuid = numbered(i);

		refused += record_add(record, &uuid, "mon", "/mon", i) != 0;
	}
	check("as many stores as may be", refused == 0 && record->store_count == RECORD_STORES_MAX);
	volume = numbered(0);
	check("one more is refused", record_add(record, &volume, "mon", "/mon", 1) == -E2BIG);
	check("one that is known is not", record_add(record, &one, "tue", "/tue", 5) == 0);
	record_destroy(record);
}

/* ---- stores of several parts, and memory that runs short ---- */

#define MANY 9u /* stores, and parts: more than there is room for at first */

/* A step that fails for want of memory is made once more. */
#define AGAIN(step) (error = (step), error == -ENOMEM && memory_was_short ? (step) : error)

/* The record of a volume with MANY stores of two parts each, made and saved; NULL: something went wrong. */
static struct record *make_many(void)
{
	uuid128_t volume = id(1);
	struct record *record = NULL;
	int error;

	if (AGAIN(record_create(directory, "/before", &volume, &record)) != 0)
		return NULL;
	error = AGAIN(record_set_origin(record, "/many"));
	for (size_t i = 0; i < MANY && error == 0; i++) {
		uuid128_t store = numbered(i), part = numbered(100 + i);

		error = AGAIN(record_add(record, &store, "mon", "/mon", i));
		error = error != 0 ? error : AGAIN(record_add_part(record, &store, &part, "/part"));
	}
	if (error == 0 && record_save(record) == 0)
		return record;
	record_destroy(record);
	return NULL;
}

static bool has_many(const struct record *record)
{
	bool ok = record->store_count == MANY && record->part_count == MANY && strcmp(record->origin_path, "/many") == 0;

	for (size_t i = 0; i < MANY && ok; i++) {
		uuid128_t store = numbered(i), part = numbered(100 + i);
		const struct record_part *found = record_part_find(record, &part);

		ok = uuid_equal(&record->stores[i].uuid, &store) && found != NULL &&
		     uuid_equal(&found->main_uuid, &store) && strcmp(found->path, "/part") == 0;
	}
	return ok;
}

static void parts(void)
{
	uuid128_t nil = id(0), store = numbered(3), part = numbered(104), late = numbered(105);
	struct record *record = make_many(), *found = NULL;
	char path[PATH_MAX + 1];

	check("parts are saved, and found again",
	      record != NULL && record_find(directory, "/many", &nil, &found) == 0 && has_many(found));
	record_destroy(record);
	if (found == NULL)
		return;
	record_remove(found, &store);
	check("a store's part goes with it, and no other",
	      found->store_count == MANY - 1 && found->part_count == MANY - 1 && record_part_find(found, &part) != NULL);
	check("a part that is known is seen somewhere else", record_add_part(found, &nil, &part, "/new") == 0 &&
								     found->part_count == MANY - 1 &&
								     strcmp(record_part_find(found, &part)->path, "/new") == 0);
	record_remove_part(found, &store);
	record_remove_part(found, &part);
	check("a part can be taken out", found->part_count == MANY - 2 && record_part_find(found, &part) == NULL &&
						 record_part_find(found, &late) != NULL);
	memset(path, 'p', PATH_MAX);
	path[PATH_MAX] = '\0';
	check("a part's path has a bound", record_add_part(found, &nil, &part, path) == -ENAMETOOLONG);
	for (size_t i = 0; found->part_count < RECORD_PARTS_MAX && i < RECORD_PARTS_MAX; i++) {
		uuid128_t uuid = numbered(1000 + i);

		(void)!record_add_part(found, &nil, &uuid, "/p");
	}
	check("as many parts as may be, and no more", found->part_count == RECORD_PARTS_MAX &&
							      record_add_part(found, &nil, &part, "/p") == -E2BIG);
	record_destroy(found);
}

static void short_memory(void)
{
	int64_t in_use = memory_in_use;
	unsigned wrong = 0, at = 0;
	uuid128_t nil = id(0);
	bool was_short = true;

	for (; was_short; at++) {
		struct record *record;

		memory_short(at);
		record = make_many();
		was_short = memory_was_short;
		memory_short(MEMORY_ENOUGH);
		wrong += record == NULL || !has_many(record);
		record_destroy(record);
	}
	check("whatever there was no memory for can be done again", wrong == 0 && at > 5);
	check("nothing is left of it in memory", memory_in_use == in_use);
	wrong = 0;
	was_short = true;
	for (at = 0; was_short; at++) {
		struct record *found = NULL;
		int error;

		memory_short(at);
		error = record_find(directory, "/many", &nil, &found);
		was_short = memory_was_short;
		memory_short(MEMORY_ENOUGH);
		wrong += was_short ? error != -EUCLEAN || found != NULL : error != 0 || !has_many(found);
		record_destroy(found);
	}
	check("a record there is no memory for is told as one that cannot be read", wrong == 0 && at > 5);
}

/* ---- the file ---- */

static bool is_found(const char *origin)
{
	struct record *found = NULL;
	uuid128_t nil = id(0);
	bool ok = record_find(directory, origin, &nil, &found) == 0;

	record_destroy(found);
	return ok;
}

static int find_error(const char *folder)
{
	struct record *found = NULL;
	uuid128_t nil = id(0);
	int error = record_find(folder, "/no such origin", &nil, &found);

	record_destroy(found);
	return error;
}

static void odd_files(void)
{
	char path[128], other[128];

	path_of(9, path);
	path_of(1, other);
	check("what is not there has no record", find_error("/no/such/folder") == -ENOENT);
	check("a folder in a record's place is passed over", mkdir(path, 0700) == 0 && find_error(directory) == -EUCLEAN);
	check("... and others are found all the same", is_found("/many"));
	check("a FIFO is, and nobody waits for it",
	      rmdir(path) == 0 && mkfifo(path, 0600) == 0 && find_error(directory) == -EUCLEAN);
	check("a symbolic link is", unlink(path) == 0 && symlink(other, path) == 0 && find_error(directory) == -EUCLEAN);
	(void)unlink(path);
	put(9, "{\"uuid\":\"09090909-0909-0909-0909-090909090909\",\"origin\":\"/y\",\"stores\":[]}");
	check("a file that can be read is not", find_error(directory) == -ENOENT);
	check("but above the bound it is", truncate(path, (off_t)9 << 20) == 0 && find_error(directory) == -EUCLEAN);
	(void)unlink(path);
}

/* The disk fills in the middle of it: a file of ours may not grow beyond `bytes`. */
static int save_within(const struct record *record, rlim_t bytes)
{
	struct rlimit before, limit;
	int error;

	if (getrlimit(RLIMIT_FSIZE, &before) != 0)
		return 0;
	limit = (struct rlimit){ bytes, before.rlim_max };
	(void)signal(SIGXFSZ, SIG_IGN);
	error = setrlimit(RLIMIT_FSIZE, &limit) == 0 ? record_save(record) : 0;
	(void)setrlimit(RLIMIT_FSIZE, &before);
	return error;
}

static void failing_saves(void)
{
	struct record *record = make_many();
	char path[128], new_path[140], deep[PATH_MAX];
	struct record *nowhere = NULL;
	uuid128_t volume = id(1);

	if (record == NULL || record_set_origin(record, "/later") != 0)
		return;
	path_of(1, path);
	(void)snprintf(new_path, sizeof(new_path), "%s.new", path);
	check("a save that there is no room for fails, and the old record stays",
	      save_within(record, 100) == -EFBIG && is_found("/many") && !is_found("/later"));
	(void)unlink(new_path);
	check("so does one whose file cannot be made",
	      mkdir(new_path, 0700) == 0 && record_save(record) == -EISDIR && is_found("/many"));
	(void)rmdir(new_path);
	check("then it is saved", record_save(record) == 0 && is_found("/later") && !is_found("/many"));
	(void)unlink(path);
	check("one that cannot take its place fails",
	      mkdir(path, 0700) == 0 && record_save(record) == -EISDIR && !is_found("/later"));
	(void)rmdir(path);
	(void)unlink(new_path);
	record_destroy(record);
	if (record_create("/no/such/folder", "/x", &volume, &nowhere) == 0)
		check("without its folder nothing is saved", record_save(nowhere) == -ENOENT);
	record_disown(nowhere); /* nobody to take it from */
	record_destroy(nowhere);
	memset(deep, 'd', sizeof(deep) - 1);
	deep[sizeof(deep) - 1] = '\0';
	if (record_create(deep, "/x", &volume, &nowhere) == 0)
		check("a path that is too long is said to be", record_save(nowhere) == -ENAMETOOLONG);
	record_destroy(nowhere);
}

int main(void)
{
	char path[128];

	if (mkdtemp(directory) == NULL)
		return 1;
	round_trip();
	damaged();
	changes();
	bounds();
	parts();
	short_memory();
	odd_files();
	failing_saves();
	path_of(1, path);
	(void)unlink(path);
	(void)rmdir(directory);
	return unit_done();
}
