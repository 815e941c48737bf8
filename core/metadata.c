/* SPDX-License-Identifier: GPL-2.0-or-later */
/* An area's two metadata copies. See metadata.h. */
#include "core/metadata.h"

struct log_format log_format_of(const struct store *store)
{
	return (struct log_format){ store->seed, store->superblock.geometry,
				    superblock_block_count(&store->superblock) };
}

void area_copy_decode(const struct log_format *format, struct area_copies *both, unsigned which)
{
	struct meta_copy *copy = &both->copies[which];

	copy->valid = copy->bytes != NULL && copy->error == 0 &&
		      area_header_decode(copy->bytes, format->seed, both->area, format->geometry.slots_per_area,
					 &copy->header) == 0;
}

void area_copies_choose(struct area_copies *both)
{
	const struct meta_copy *copies = both->copies;

	both->first_choice = copies[1].valid &&
					     (!copies[0].valid ||
					      copies[1].header.write_count > copies[0].header.write_count) ?
				     1 :
				     0;
}

bool area_copy_entry(const struct log_format *format, const struct area_copies *both, unsigned which, uint32_t index,
		     struct entry *entry)
{
	const struct meta_copy *copy = &both->copies[which];

	return copy->bytes != NULL && copy->error == 0 &&
	       entry_decode(copy->bytes, format->seed, both->area, index, format->block_count, entry) == 0;
}

bool area_copies_entry(const struct log_format *format, const struct area_copies *both, uint32_t index,
		       struct entry *entry)
{
	return area_copy_entry(format, both, both->first_choice, index, entry) ||
	       area_copy_entry(format, both, 1 - both->first_choice, index, entry);
}

uint32_t area_copy_count(const struct log_format *format, const struct area_copies *both, unsigned which,
			 uint32_t wanted)
{
	uint32_t count = 0;
	struct entry entry;

	for (uint32_t i = 0; i < wanted; i++)
		if (area_copy_entry(format, both, which, i, &entry))
			count++;
	return count;
}

void area_copies_unite(const struct log_format *format, const struct area_copies *both, uint32_t count,
		       uint64_t durable_slots, bool is_next, uint8_t bytes[static AREA_META_BYTES])
{
	struct area_header header = {
		.area = both->area,
		.durable_slots = durable_slots,
		.entry_count = (uint16_t)count,
	};
	struct entry entry;

	memset(bytes, 0, AREA_META_BYTES);
	for (uint32_t i = 0; i < count; i++)
		if (area_copies_entry(format, both, i, &entry))
			entry_encode(bytes, format->seed, both->area, i, &entry);
	for (unsigned which = 0; which < 2; which++)
		if (both->copies[which].valid && both->copies[which].header.write_count > header.write_count)
			header.write_count = both->copies[which].header.write_count;
	header.write_count += is_next ? 1 : 0;
	area_header_encode(bytes, format->seed, &header);
}
