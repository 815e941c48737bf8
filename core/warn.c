/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * How full the active store is, and telling when it passes one of the thresholds.
 *
 * What it has is what its limits and devices leave, and no more than its files' file systems have left, which are looked at
 * once a second, one after the other, by a worker. Each threshold is told once when it is passed; and again when the
 * store has been below it meanwhile, by a percent point at least, or by an extend or a new snapshot.
 */
#include <errno.h>

#include "core/engine.h"
#include "io/log.h"

#define MEASURE_EVERY_NS (UINT64_C(1000) * 1000 * 1000)

void warn_tell(struct volume *volume, enum volume_event_kind kind, unsigned threshold)
{
	const struct snapshot *active = volume_active(volume);
	struct volume_event event = { .kind = kind, .threshold = threshold };

	if (active == NULL || volume->event == NULL)
		return;
	event.snapshot = active->store->superblock.name;
	event.store = active->store->path;
	event.used_bytes = store_used_bytes(active->store);
	event.size_bytes = store_limit_bytes(active->store);
	event.percent = store_percent(active->store);
	event.reason = broken_reason_text(volume->broken_mark.reason);
	volume->event(&event, volume->event_context);
}

unsigned store_percent(const struct store *store)
{
	uint64_t used = store_used_bytes(store), room = store_room_bytes(store);

	if (room == UINT64_MAX)
		return 0;
	/* in KiB, so that nothing overflows */
	return (unsigned)(used / 1024 * 100 / ((used + room) / 1024));
}

/* How many of the thresholds, which are in order, `percent` has passed. */
static unsigned passed(const struct volume *volume, unsigned percent)
{
	unsigned count = 0;

	while (count < volume->warn_count && percent >= volume->warn_at[count])
		count++;
	return count;
}

unsigned warn_level(const struct volume *volume, const struct store *store)
{
	unsigned count = passed(volume, store_percent(store));

	return count == 0 ? 0 : volume->warn_at[count - 1];
}

void warn_look_again(struct volume *volume)
{
	const struct snapshot *active = volume_active(volume);

	volume->full_told = false;
	if (active != NULL && volume->warn_passed > passed(volume, store_percent(active->store)))
		volume->warn_passed = passed(volume, store_percent(active->store));
	volume->measured_ns = 0;
}

static void measured(struct disk_io *io, int error)
{
	struct volume *volume = io->context;
	struct store *part = store_part(volume->measured, volume->measured_part);

	if (error == 0)
		part->room_bytes = io->room_bytes;
	volume->measuring = false;
	volume->measured_part++;
	store_unpin(volume->measured);
}

static void measure(struct volume *volume, struct store *store)
{
	uint64_t now_ns = disk_host_monotonic_ns(volume->host);

	if (volume->measuring)
		return;
	if (volume->measured_store_seed != store->seed || volume->measured_part >= store_part_count(store)) {
		if (volume->measured_ns != 0 && now_ns - volume->measured_ns < MEASURE_EVERY_NS)
			return;
		volume->measured_ns = now_ns;
		volume->measured_part = 0;
	}
	volume->measured = store;
	volume->measured_store_seed = store->seed;
	volume->measuring = true;
	store_pin(store);
	volume->measure_io = (struct disk_io){ .disk = store_part(store, volume->measured_part)->disk,
					       .op = DISK_MEASURE,
					       .done = measured,
					       .context = volume };
	disk_submit(&volume->measure_io);
}

bool warn_is_quiet(const struct volume *volume)
{
	return !volume->measuring;
}

void warn_tick(struct volume *volume)
{
	const struct snapshot *active = volume_active(volume);
	unsigned percent;

	if (active == NULL || volume->warn_count == 0 || volume->stopping || volume_is_broken(volume) ||
	    active->store->log == NULL)
		return;
	if (volume->warned_seed != active->store->seed) {
		volume->warned_seed = active->store->seed;
		volume->warn_passed = 0;
		volume->full_told = false;
	}
	measure(volume, active->store);
	percent = store_percent(active->store);
	while (volume->warn_passed < volume->warn_count && percent >= volume->warn_at[volume->warn_passed]) {
		unsigned threshold = volume->warn_at[volume->warn_passed++];

		log_warning("store %s: %u %% full (threshold %u %%)", active->store->path, percent, threshold);
		warn_tell(volume, VOLUME_EVENT_THRESHOLD, threshold);
	}
	if (volume->warn_passed > 0 && percent + 1 < volume->warn_at[volume->warn_passed - 1])
		volume->warn_passed--;
}
