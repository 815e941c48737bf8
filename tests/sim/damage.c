/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What happens to disks while no server runs: bits rot, an old superblock copy comes back, somebody writes to the origin.
 *
 * 1. One bad copy of what there are two of costs nothing: a superblock copy that rots, or is an old one again, while the
 *    other is good; one copy of an area's metadata in a log that ended cleanly.
 * 2. What rots otherwise is noticed: reads may fail from then on, and the chain may be marked broken, but what is read is
 *    right. That is so for all that lies before the durable mark. Past it, what rots cannot be told from what a power cut
 *    tore: the log ends there, as if the disk had not kept what it said it had flushed; so nothing rots there here.
 * 3. An origin whose fingerprinted area was written is refused, and accepted again when what was there is back. Or it is
 *    taken as it is, with the chain marked broken.
 */
#include <errno.h>
#include <stdlib.h>

#include "tests/sim/run.h"

static const uint64_t copy_offsets[SUPERBLOCK_COPIES] = { SUPERBLOCK_OFFSET_0, SUPERBLOCK_OFFSET_1 };

/* The superblock, when both copies are good and alike; else false, and nothing may happen to either. */
static bool read_superblock(const struct sim_file *file, uint8_t bytes[static SUPERBLOCK_BYTES],
			    struct superblock *superblock)
{
	uint8_t other[SUPERBLOCK_BYTES];

	sim_file_peek(file, copy_offsets[0], bytes, SUPERBLOCK_BYTES);
	sim_file_peek(file, copy_offsets[1], other, sizeof(other));
	return memcmp(bytes, other, sizeof(other)) == 0 && superblock_decode(bytes, superblock, NULL) == 0;
}

static void rot_byte(struct run *run, struct sim_file *file, uint64_t offset, uint64_t bytes)
{
	uint64_t at = offset + random_below(&run->random, bytes);
	uint8_t sector[SECTOR_BYTES];

	sim_file_peek(file, at / SECTOR_BYTES * SECTOR_BYTES, sector, sizeof(sector));
	sector[at % SECTOR_BYTES] ^= (uint8_t)random_range(&run->random, 1, 255);
	sim_file_poke(file, at / SECTOR_BYTES * SECTOR_BYTES, sector, sizeof(sector));
	run->totals->damages++;
	sim_trace("==== byte %llu of %s rots", (unsigned long long)at, sim_file_name(file));
}

/* ---- rule 1 ---- */

static void rot_superblock(struct run *run, struct sim_file *file)
{
	rot_byte(run, file, copy_offsets[random_below(&run->random, 2)], SUPERBLOCK_BYTES);
}

/* Remembers what is there now, or brings back what was there then. */
static void bring_back_twin(struct run *run, unsigned store, const uint8_t bytes[static SUPERBLOCK_BYTES],
			    const struct superblock *now)
{
	struct superblock old;

	if (superblock_decode(run->twins[store], &old, NULL) != 0 || !uuid_equal(&old.store_uuid, &now->store_uuid) ||
	    old.generation >= now->generation) {
		memcpy(run->twins[store], bytes, SUPERBLOCK_BYTES);
		return;
	}
	run->totals->damages++;
	sim_trace("==== an old superblock copy of %s is back: generation %llu", sim_file_name(run->stores[store]),
		  (unsigned long long)old.generation);
	sim_file_poke(run->stores[store], copy_offsets[random_below(&run->random, 2)], run->twins[store],
		      SUPERBLOCK_BYTES);
}

/* ---- rule 2 ---- */

static uint64_t meta_offset(struct run *run, const struct superblock *superblock, uint64_t slots, unsigned copy)
{
	uint32_t areas = (uint32_t)((slots + superblock->geometry.slots_per_area - 1) / superblock->geometry.slots_per_area);

	return geometry_meta_offset(&superblock->geometry, (uint32_t)random_below(&run->random, areas), copy);
}

static void rot_log(struct run *run, struct sim_file *file, const struct superblock *superblock)
{
	uint64_t slots = superblock->clean ? superblock->log_slots : superblock->durable_slots, offset;
	slot_t slot;

	if (slots == 0)
		return;
	switch (random_below(&run->random, 4)) {
	case 0:
		/* Of a log that is open the second copy may be missing. */
		if (!superblock->clean)
			return;
		offset = meta_offset(run, superblock, slots, (unsigned)random_below(&run->random, 2));
		run->is_ragged = true;
		rot_byte(run, file, offset, AREA_META_BYTES);
		return;
	case 1:
		offset = meta_offset(run, superblock, slots, 0);
		rot_byte(run, file, offset, AREA_META_BYTES);
		rot_byte(run, file, offset + geometry_area_bytes(&superblock->geometry) - AREA_META_BYTES,
			 AREA_META_BYTES);
		break;
	default:
		slot = SLOT((uint32_t)random_below(&run->random, slots));
		rot_byte(run, file, geometry_slot_offset(&superblock->geometry, slot), superblock->geometry.block_bytes);
		break;
	}
	run->rotten = true;
}

void rot(struct run *run)
{
	struct snap *snap = choose_snap(run);
	uint8_t bytes[SUPERBLOCK_BYTES];
	struct superblock superblock;
	struct sim_file *file;

	if (snap == NULL || has_doubts(run) || run->store_lost)
		return;
	file = run->stores[snap->store];
	if (!read_superblock(file, bytes, &superblock))
		return;
	/* A kill leaves in the cache what a power cut, coming next, takes back: a copy of it is not good yet. */
	if (random_chance(&run->random, 300) && !sim_file_is_dirty(file, 0, FIRST_AREA_OFFSET))
		rot_superblock(run, file);
	else if (random_chance(&run->random, 500) && !sim_file_is_dirty(file, 0, FIRST_AREA_OFFSET))
		bring_back_twin(run, snap->store, bytes, &superblock);
	else if (run->may_rot && superblock.state != STATE_MERGING && !sim_file_is_dirty(file, 0, UINT64_MAX))
		rot_log(run, file, &superblock);
}

/* ---- rule 3 ---- */

/* What the start says to it. */
static int try_start(struct run *run)
{
	struct complaint complaint;
	int error = try_open(run, random_chance(&run->random, 300), true, &complaint);

	sim_trace("the start says: %s", strerror(-error));
	if (error != 0 && sim_in_flight(run->host) > 0)
		sim_fail("requests are in flight after a start that was refused");
	return error;
}

static bool is_any_protected(const struct run *run)
{
	for (unsigned i = 0; i < run->snap_count; i++)
		if (run->snaps[i].state == SNAP_EXISTS)
			return true;
	return false;
}

/* The server goes on with the origin as it is, and the chain is broken. */
static void accept_origin(struct run *run, uint64_t offset, const uint8_t *sector)
{
	int error;

	sim_file_poke(run->origin, offset, sector, SECTOR_BYTES);
	oracle_overwrite(run->oracle, offset, sector);
	run->limited = true; /* reads may fail from now on */
	run->options.accept_origin = true;
	error = try_start(run);
	run->options.accept_origin = false;
	if (error != 0)
		sim_fail("an origin that was changed cannot be accepted");
	run->stopping = false;
	run->stopped = false;
	verify(run);
	end_life(run);
}

void tamper(struct run *run)
{
	static const struct crash_plan none;
	uint64_t sector = random_below(&run->random, FINGERPRINT_SECTORS), offset = fingerprint_offset((unsigned)sector);
	uint8_t before[SECTOR_BYTES], after[SECTOR_BYTES];
	int error;

	if (may_fail(run) || run->hard_to_reopen || has_doubts(run) || !is_any_protected(run) || run->is_exhaustive ||
	    offset + SECTOR_BYTES > run->origin_bytes || sim_file_is_dirty(run->origin, offset, SECTOR_BYTES))
		return;
	choose_absent(run);
	sim_set_crash(run->host, &none);
	sim_file_peek(run->origin, offset, before, sizeof(before));
	random_fill(random_next(&run->random), after, sizeof(after));
	sim_trace("==== somebody writes to byte %llu of the origin", (unsigned long long)offset);
	sim_file_poke(run->origin, offset, after, sizeof(after));
	run->no_probes = true;
	error = try_start(run);
	run->totals->refusals++;
	run->no_probes = false;
	if (error != -ESTALE)
		sim_fail("an origin that was changed behind our back is %s", error == 0 ? "accepted" : strerror(-error));
	if (random_chance(&run->random, 200)) {
		accept_origin(run, offset, after);
		return;
	}
	sim_trace("==== and puts it back");
	sim_file_poke(run->origin, offset, before, sizeof(before));
}
