/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The volume's record: what is saved is found again; what is damaged is passed over. */
#include "core/record.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/chain.h"
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

int main(void)
{
	char path[128];

	if (mkdtemp(directory) == NULL)
		return 1;
	round_trip();
	damaged();
	changes();
	bounds();
	path_of(1, path);
	(void)unlink(path);
	(void)rmdir(directory);
	return unit_done();
}
