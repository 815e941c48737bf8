/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Little-endian numbers in byte buffers. Everything on disk is read and written through these, so that neither the
 * host's byte order nor a structure's padding can reach the format.
 */
#ifndef FORMAT_BYTES_H
#define FORMAT_BYTES_H

#include <stdint.h>

static inline void put_u16(uint8_t *at, uint16_t value)
{
	at[0] = (uint8_t)(value & 0xff);
	at[1] = (uint8_t)(value >> 8);
}

static inline void put_u32(uint8_t *at, uint32_t value)
{
	put_u16(at, (uint16_t)(value & 0xffff));
	put_u16(at + 2, (uint16_t)(value >> 16));
}

static inline void put_u64(uint8_t *at, uint64_t value)
{
	put_u32(at, (uint32_t)(value & 0xffffffff));
	put_u32(at + 4, (uint32_t)(value >> 32));
}

static inline uint16_t get_u16(const uint8_t *at)
{
	return (uint16_t)(at[0] | (uint16_t)(at[1] << 8));
}

static inline uint32_t get_u32(const uint8_t *at)
{
	return (uint32_t)get_u16(at) | ((uint32_t)get_u16(at + 2) << 16);
}

static inline uint64_t get_u64(const uint8_t *at)
{
	return (uint64_t)get_u32(at) | ((uint64_t)get_u32(at + 4) << 32);
}

#endif
