/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * dm-user's messages. The target is in Android's kernels, its header in no distribution's package, so it is all said
 * here. Five numbers of 64 bits in the machine's own order, and maybe a payload:
 *
 *	offset 0   sequence   the same in the reply
 *	       8   type       what is asked for; in a reply, how it went
 *	      16   flags      DM_USER_FLAG_...
 *	      24   sector     of 512 bytes, from the device's start
 *	      32   length     bytes
 *	      40   payload    of a WRITE, and of the reply to a READ that went well: `length` bytes
 *
 * A flush comes as a WRITE of no bytes with PREFLUSH. A reply that tells of an error has no payload.
 */
#ifndef IO_DM_USER_PROTOCOL_H
#define IO_DM_USER_PROTOCOL_H

#include <stdint.h>
#include <string.h>

#define DM_USER_HEADER_BYTES 40u
#define DM_USER_SECTOR_BYTES 512u

#define DM_USER_READ 0u
#define DM_USER_WRITE 1u
#define DM_USER_FLUSH 2u
#define DM_USER_DISCARD 3u
#define DM_USER_SECURE_ERASE 4u
#define DM_USER_WRITE_SAME 5u
#define DM_USER_WRITE_ZEROES 6u

#define DM_USER_SUCCESS 0u
#define DM_USER_ERROR 1u
#define DM_USER_UNSUPPORTED 2u

/* Of the flags, those that matter here. */
#define DM_USER_FLAG_FUA 0x200u
#define DM_USER_FLAG_PREFLUSH 0x400u
#define DM_USER_FLAG_NOUNMAP 0x8000u

struct dm_user_message {
	uint64_t sequence, type, flags, sector, length;
};

static inline void dm_user_decode(const uint8_t bytes[static DM_USER_HEADER_BYTES], struct dm_user_message *message)
{
	memcpy(&message->sequence, bytes, 8);
	memcpy(&message->type, bytes + 8, 8);
	memcpy(&message->flags, bytes + 16, 8);
	memcpy(&message->sector, bytes + 24, 8);
	memcpy(&message->length, bytes + 32, 8);
}

static inline void dm_user_encode(const struct dm_user_message *message, uint8_t bytes[static DM_USER_HEADER_BYTES])
{
	memcpy(bytes, &message->sequence, 8);
	memcpy(bytes + 8, &message->type, 8);
	memcpy(bytes + 16, &message->flags, 8);
	memcpy(bytes + 24, &message->sector, 8);
	memcpy(bytes + 32, &message->length, 8);
}

/* How many bytes follow the header of a message from the kernel. */
static inline uint64_t dm_user_payload_bytes(const struct dm_user_message *message)
{
	return message->type == DM_USER_WRITE ? message->length : 0;
}

#endif
