/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The NBD protocol's numbers, and its byte order (big-endian) in byte buffers. Names follow the protocol's document. */
#ifndef IO_NBD_PROTOCOL_H
#define IO_NBD_PROTOCOL_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define NBD_MAGIC_GREETING UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_MAGIC_OPTION UINT64_C(0x49484156454f5054)   /* "IHAVEOPT" */
#define NBD_MAGIC_OPTION_REPLY UINT64_C(0x0003e889045565a9)
#define NBD_MAGIC_REQUEST UINT32_C(0x25609513)
#define NBD_MAGIC_SIMPLE_REPLY UINT32_C(0x67446698)
#define NBD_MAGIC_CHUNK UINT32_C(0x668e33ef)

#define NBD_GREETING_BYTES 18u       /* magic, option magic, u16 handshake flags */
#define NBD_CLIENT_FLAGS_BYTES 4u    /* u32 */
#define NBD_OPTION_BYTES 16u         /* magic, u32 option, u32 length of the data that follows */
#define NBD_OPTION_REPLY_BYTES 20u   /* magic, u32 option, u32 type, u32 length of the data that follows */
#define NBD_REQUEST_BYTES 28u        /* u32 magic, u16 flags, u16 command, u64 cookie, u64 offset, u32 length */
#define NBD_SIMPLE_REPLY_BYTES 16u   /* u32 magic, u32 error, u64 cookie */
#define NBD_CHUNK_BYTES 20u          /* u32 magic, u16 flags, u16 type, u64 cookie, u32 length of what follows */
#define NBD_EXPORT_NAME_ZEROES 124u  /* after EXPORT_NAME's answer, unless NO_ZEROES */
#define NBD_STRING_BYTES_MAX 4096u

/* Handshake flags, the same in both directions. */
#define NBD_FLAG_FIXED_NEWSTYLE 1u
#define NBD_FLAG_NO_ZEROES 2u

enum nbd_option {
	NBD_OPT_EXPORT_NAME = 1,
	NBD_OPT_ABORT = 2,
	NBD_OPT_LIST = 3,
	NBD_OPT_STARTTLS = 5,
	NBD_OPT_INFO = 6,
	NBD_OPT_GO = 7,
	NBD_OPT_STRUCTURED_REPLY = 8,
	NBD_OPT_LIST_META_CONTEXT = 9,
	NBD_OPT_SET_META_CONTEXT = 10,
	NBD_OPT_EXTENDED_HEADERS = 11,
};

enum nbd_option_reply {
	NBD_REP_ACK = 1,
	NBD_REP_SERVER = 2,
	NBD_REP_INFO = 3,
	NBD_REP_META_CONTEXT = 4,
};

#define NBD_REP_ERR_UNSUP UINT32_C(0x80000001)
#define NBD_REP_ERR_INVALID UINT32_C(0x80000003)
#define NBD_REP_ERR_UNKNOWN UINT32_C(0x80000006)
#define NBD_REP_ERR_SHUTDOWN UINT32_C(0x80000007)
#define NBD_REP_ERR_TOO_BIG UINT32_C(0x80000009)

enum nbd_info {
	NBD_INFO_EXPORT = 0,
	NBD_INFO_NAME = 1,
	NBD_INFO_DESCRIPTION = 2,
	NBD_INFO_BLOCK_SIZE = 3,
};

/* Transmission flags, of an export. */
#define NBD_FLAG_HAS_FLAGS (1u << 0)
#define NBD_FLAG_READ_ONLY (1u << 1)
#define NBD_FLAG_SEND_FLUSH (1u << 2)
#define NBD_FLAG_SEND_FUA (1u << 3)
#define NBD_FLAG_SEND_TRIM (1u << 5)
#define NBD_FLAG_SEND_WRITE_ZEROES (1u << 6)
#define NBD_FLAG_SEND_DF (1u << 7)
#define NBD_FLAG_CAN_MULTI_CONN (1u << 8)

enum nbd_command {
	NBD_CMD_READ = 0,
	NBD_CMD_WRITE = 1,
	NBD_CMD_DISC = 2,
	NBD_CMD_FLUSH = 3,
	NBD_CMD_TRIM = 4,
	NBD_CMD_WRITE_ZEROES = 6,
	NBD_CMD_BLOCK_STATUS = 7,
};

#define NBD_CMD_FLAG_FUA (1u << 0)
#define NBD_CMD_FLAG_NO_HOLE (1u << 1)
#define NBD_CMD_FLAG_DF (1u << 2)
#define NBD_CMD_FLAG_REQ_ONE (1u << 3)

#define NBD_CHUNK_FLAG_DONE 1u
#define NBD_CHUNK_NONE 0u
#define NBD_CHUNK_OFFSET_DATA 1u
#define NBD_CHUNK_BLOCK_STATUS 5u
#define NBD_CHUNK_ERROR 32769u

/* The context base:allocation. */
#define NBD_STATE_HOLE 1u
#define NBD_STATE_ZERO 2u

#define NBD_EPERM 1u
#define NBD_EIO 5u
#define NBD_ENOMEM 12u
#define NBD_EINVAL 22u
#define NBD_ENOSPC 28u
#define NBD_EOVERFLOW 75u
#define NBD_ENOTSUP 95u
#define NBD_ESHUTDOWN 108u

static inline void nbd_put16(uint8_t *at, uint16_t value)
{
	value = htobe16(value);
	memcpy(at, &value, sizeof(value));
}

static inline void nbd_put32(uint8_t *at, uint32_t value)
{
	value = htobe32(value);
	memcpy(at, &value, sizeof(value));
}

static inline void nbd_put64(uint8_t *at, uint64_t value)
{
	value = htobe64(value);
	memcpy(at, &value, sizeof(value));
}

static inline uint16_t nbd_get16(const uint8_t *at)
{
	uint16_t value;

	memcpy(&value, at, sizeof(value));
	return be16toh(value);
}

static inline uint32_t nbd_get32(const uint8_t *at)
{
	uint32_t value;

	memcpy(&value, at, sizeof(value));
	return be32toh(value);
}

static inline uint64_t nbd_get64(const uint8_t *at)
{
	uint64_t value;

	memcpy(&value, at, sizeof(value));
	return be64toh(value);
}

#endif
