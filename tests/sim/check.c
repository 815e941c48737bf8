/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a stop or a crash leaves is no damage: check must find no fault in any store, whatever the simulator did, as
 * long as no disk failed.
 */
#include <stdlib.h>

#include "core/check.h"
#include "tests/sim/sim.h"

/*
 * A power cut may leave rubbish in a sector of the one superblock copy that was being written, and of a store that
 * was being wiped both copies may be gone. And a run leaves stores of several volumes behind.
 */
static bool is_excused(const struct check_finding *finding)
{
	const struct superblock *superblock = &finding->store->store->superblock;

	switch ((int)finding->code) {
	case FOUND_SUPERBLOCK_COPY_DAMAGED:
	case FOUND_SUPERBLOCK_LOST:
	case FOUND_CHAIN_CONTRADICTION:
		return true;
	case FOUND_METADATA_COPY_DAMAGED: /* a run begins by writing one there, before it takes the clean mark away */
		return superblock->clean && superblock->state == STATE_ACTIVE &&
		       finding->area == superblock->log_slots / superblock->geometry.slots_per_area;
	default:
		return false;
	}
}

static void found(const struct check_finding *finding, void *context)
{
	const struct check_kind *kind = check_kind(finding->code);

	(void)context;
	sim_trace("check: %s: %s: %s", finding->store->store->path, kind->code, finding->text);
	if (kind->severity != CHECK_NOTICE && !is_excused(finding))
		sim_fail("check calls store %s damaged: %s: %s", finding->store->store->path, kind->code, finding->text);
}

void sim_check_stores(struct disk_host *host, struct sim_file *const *files, size_t count)
{
	struct check_store *stores = sim_take(count * sizeof(*stores));
	bool paused = sim_memory_pause(true);
	struct check check = { .host = host, .stores = stores, .found = found };

	sim_set_immediate(host, true);
	for (size_t i = 0; i < count; i++)
		if (store_open(host, sim_file_name(files[i]), DISK_OPEN_READ_ONLY | DISK_OPEN_LOCK,
			       &stores[check.count].store) == 0)
			check.count++;
	if (check.count > 0 && check_run(&check) != 0)
		sim_fail("out of memory");
	check_end(&check);
	for (size_t i = 0; i < check.count; i++)
		store_close(stores[i].store);
	sim_set_immediate(host, false);
	(void)sim_memory_pause(paused);
	sim_give(stores);
}
