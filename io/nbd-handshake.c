/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * NBD's negotiation, fixed newstyle:
 *
 *	greeting ──> client's flags ──> option ──> reply ─┬─> EXPORT_NAME, GO: transmission
 *	                                  ^               ├─> ABORT, or a broken rule: the end
 *	                                  └───────────────┘
 *
 * Options we do not have (STARTTLS and EXTENDED_HEADERS among them) are answered with ERR_UNSUP, and the negotiation
 * goes on. Bounds: the whole has a deadline (nbd.c), NBD_OPTIONS_MAX options, NBD_OPTION_DATA_BYTES_MAX of data each,
 * and an option is taken only when the replies to those before it are mostly sent.
 *
 * Lengths inside an option's data are the client's and are checked against what is there; a structure `data` carries
 * what is left of it.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "io/nbd-connection.h"
#include "io/nbd-protocol.h"

#define CONTEXT_NAME "base:allocation"
#define CONTEXT_NAMESPACE "base:"

struct data {
	const uint8_t *at;
	size_t bytes;
};

/* Room for `bytes` more in the outbox; NULL (and the connection is dropped) when there is no memory. */
static uint8_t *say_room(struct nbd_connection *connection, size_t bytes)
{
	size_t needed = connection->outbox_bytes + bytes;
	uint8_t *at;

	if (connection->stage == NBD_STAGE_DEAD)
		return NULL;
	if (needed > connection->outbox_room) {
		size_t room = needed < 512 ? 512 : needed * 2;
		uint8_t *grown = realloc(connection->outbox, room);

		if (!grown) {
			nbd_drop(connection);
			return NULL;
		}
		connection->outbox = grown;
		connection->outbox_room = room;
	}
	at = connection->outbox + connection->outbox_bytes;
	connection->outbox_bytes = needed;
	nbd_touch(connection);
	return at;
}

/* An option's reply: `head` and then `text` are its data. */
static void reply_two(struct nbd_connection *connection, uint32_t option, uint32_t type, struct data head,
		      struct data text)
{
	uint8_t *at = say_room(connection, NBD_OPTION_REPLY_BYTES + head.bytes + text.bytes);

	if (!at)
		return;
	nbd_put64(at, NBD_MAGIC_OPTION_REPLY);
	nbd_put32(at + 8, option);
	nbd_put32(at + 12, type);
	nbd_put32(at + 16, (uint32_t)(head.bytes + text.bytes));
	at += NBD_OPTION_REPLY_BYTES;
	if (head.bytes > 0)
		memcpy(at, head.at, head.bytes);
	if (text.bytes > 0)
		memcpy(at + head.bytes, text.at, text.bytes);
}

static void reply_one(struct nbd_connection *connection, uint32_t option, uint32_t type)
{
	reply_two(connection, option, type, (struct data){ NULL, 0 }, (struct data){ NULL, 0 });
}

static struct data text_data(const char *text)
{
	return (struct data){ (const uint8_t *)text, strlen(text) };
}

void nbd_greet(struct nbd_connection *connection)
{
	uint8_t *at = say_room(connection, NBD_GREETING_BYTES);

	if (!at)
		return;
	nbd_put64(at, NBD_MAGIC_GREETING);
	nbd_put64(at + 8, NBD_MAGIC_OPTION);
	nbd_put16(at + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
}

bool nbd_take_client_flags(struct nbd_connection *connection)
{
	uint32_t flags;

	if (nbd_inbox_bytes(connection) < NBD_CLIENT_FLAGS_BYTES)
		return false;
	flags = nbd_get32(nbd_inbox(connection));
	connection->inbox_start += NBD_CLIENT_FLAGS_BYTES;
	if (flags & ~(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES)) {
		nbd_violation(connection);
		return false;
	}
	connection->no_zeroes = flags & NBD_FLAG_NO_ZEROES;
	connection->stage = NBD_STAGE_OPTION;
	return true;
}

static bool data_u16(struct data *data, uint16_t *value)
{
	if (data->bytes < 2)
		return false;
	*value = nbd_get16(data->at);
	*data = (struct data){ data->at + 2, data->bytes - 2 };
	return true;
}

static bool data_u32(struct data *data, uint32_t *value)
{
	if (data->bytes < 4)
		return false;
	*value = nbd_get32(data->at);
	*data = (struct data){ data->at + 4, data->bytes - 4 };
	return true;
}

/* A length and that many bytes. */
static bool data_string(struct data *data, struct data *string)
{
	uint32_t bytes;

	if (!data_u32(data, &bytes) || bytes > data->bytes || bytes > NBD_STRING_BYTES_MAX)
		return false;
	*string = (struct data){ data->at, bytes };
	*data = (struct data){ data->at + bytes, data->bytes - bytes };
	return true;
}

static bool data_is(struct data data, const char *text)
{
	return data.bytes == strlen(text) && memcmp(data.at, text, data.bytes) == 0;
}

/* NULL for a name that nothing can have, too. */
static struct export *export_named(const struct nbd_connection *connection, struct data name)
{
	char text[sizeof(((struct export *)NULL)->name)];

	if (name.bytes >= sizeof(text) || memchr(name.at, '\0', name.bytes))
		return NULL;
	memcpy(text, name.at, name.bytes);
	text[name.bytes] = '\0';
	return export_find(connection->nbd->exports, text);
}

static void transmission_begin(struct nbd_connection *connection, struct export *export)
{
	if (connection->stage == NBD_STAGE_DEAD)
		return;
	if (strcmp(connection->allocation_name, export->name) != 0)
		connection->allocation = false;
	export_open(export);
	connection->export = export;
	connection->stage = NBD_STAGE_COMMAND;
	loop_timer_cancel(&connection->deadline);
}

/* The one option that has no way to say no. */
static void option_export_name(struct nbd_connection *connection, struct data name)
{
	struct export *export = export_named(connection, name);
	size_t zeroes = connection->no_zeroes ? 0 : NBD_EXPORT_NAME_ZEROES;
	uint8_t *at;

	if (!export || connection->nbd->quiesced) {
		nbd_end(connection);
		return;
	}
	at = say_room(connection, 10 + zeroes);
	if (!at)
		return;
	nbd_put64(at, export->size_bytes);
	nbd_put16(at + 8, nbd_export_flags(connection, export));
	memset(at + 10, 0, zeroes);
	transmission_begin(connection, export);
}

static void option_list(struct nbd_connection *connection)
{
	list_for_each(link, &connection->nbd->exports->exports) {
		const struct export *export = container_of(link, struct export, link);
		struct data name = text_data(export->name);
		uint8_t length[4];

		nbd_put32(length, (uint32_t)name.bytes);
		reply_two(connection, NBD_OPT_LIST, NBD_REP_SERVER, (struct data){ length, sizeof(length) }, name);
	}
	reply_one(connection, NBD_OPT_LIST, NBD_REP_ACK);
}

static void reply_info(struct nbd_connection *connection, uint32_t option, const struct export *export, unsigned info)
{
	struct data text = { NULL, 0 };
	uint8_t head[14];
	size_t head_bytes = 2;
	char description[96];

	nbd_put16(head, (uint16_t)info);
	if (info == NBD_INFO_EXPORT) {
		nbd_put64(head + 2, export->size_bytes);
		nbd_put16(head + 10, nbd_export_flags(connection, export));
		head_bytes = 12;
	} else if (info == NBD_INFO_BLOCK_SIZE) {
		nbd_put32(head + 2, 1);
		nbd_put32(head + 6, export->block_bytes);
		nbd_put32(head + 10, (uint32_t)REQUEST_DATA_BYTES_MAX);
		head_bytes = 14;
	} else if (info == NBD_INFO_NAME) {
		text = text_data(export->name);
	} else {
		time_t created = (time_t)(export->created_ns / 1000000000);
		struct tm calendar;

		(void)snprintf(description, sizeof(description), "read-write");
		if (export->read_only && gmtime_r(&created, &calendar))
			(void)strftime(description, sizeof(description), "read-only, as of %Y-%m-%dT%H:%M:%SZ",
				       &calendar);
		text = text_data(description);
	}
	reply_two(connection, option, NBD_REP_INFO, (struct data){ head, head_bytes }, text);
}

static void option_info(struct nbd_connection *connection, uint32_t option, struct data data)
{
	struct data name;
	struct export *export;
	uint16_t count, info;
	unsigned wanted = 1u << NBD_INFO_EXPORT;

	if (!data_string(&data, &name) || !data_u16(&data, &count) || data.bytes != (size_t)count * 2) {
		reply_one(connection, option, NBD_REP_ERR_INVALID);
		return;
	}
	while (data_u16(&data, &info))
		wanted |= info <= NBD_INFO_BLOCK_SIZE ? 1u << info : 0;
	export = export_named(connection, name);
	if (!export || connection->nbd->quiesced) {
		reply_one(connection, option, export ? NBD_REP_ERR_SHUTDOWN : NBD_REP_ERR_UNKNOWN);
		return;
	}
	for (unsigned i = 0; i <= NBD_INFO_BLOCK_SIZE; i++)
		if (wanted & (1u << i))
			reply_info(connection, option, export, i);
	reply_one(connection, option, NBD_REP_ACK);
	if (option == NBD_OPT_GO)
		transmission_begin(connection, export);
}

/* Whether the queries ask for base:allocation, the only context there is. False when the data is not well formed. */
static bool queries_parse(struct data data, bool is_list, bool *wanted)
{
	uint32_t count;
	struct data query;

	if (!data_u32(&data, &count))
		return false;
	*wanted = is_list && count == 0;
	for (uint32_t i = 0; i < count; i++) {
		if (!data_string(&data, &query))
			return false;
		if (data_is(query, CONTEXT_NAME) || (is_list && data_is(query, CONTEXT_NAMESPACE)))
			*wanted = true;
	}
	return data.bytes == 0;
}

static void option_meta_context(struct nbd_connection *connection, uint32_t option, struct data data)
{
	bool is_list = option == NBD_OPT_LIST_META_CONTEXT;
	const struct export *export;
	struct data name;
	uint8_t id[4];
	bool wanted;

	if (!is_list)
		connection->allocation = false;
	if (!connection->structured || !data_string(&data, &name) || !queries_parse(data, is_list, &wanted)) {
		reply_one(connection, option, NBD_REP_ERR_INVALID);
		return;
	}
	export = export_named(connection, name);
	if (!export) {
		reply_one(connection, option, NBD_REP_ERR_UNKNOWN);
		return;
	}
	if (wanted) {
		nbd_put32(id, is_list ? 0 : NBD_ALLOCATION_ID);
		reply_two(connection, option, NBD_REP_META_CONTEXT, (struct data){ id, sizeof(id) },
			  text_data(CONTEXT_NAME));
	}
	reply_one(connection, option, NBD_REP_ACK);
	if (!is_list) {
		connection->allocation = wanted;
		memcpy(connection->allocation_name, export->name, sizeof(connection->allocation_name));
	}
}

static void option_handle(struct nbd_connection *connection, uint32_t option, struct data data)
{
	switch (option) {
	case NBD_OPT_EXPORT_NAME:
		option_export_name(connection, data);
		break;
	case NBD_OPT_ABORT:
		reply_one(connection, option, NBD_REP_ACK);
		nbd_end(connection);
		break;
	case NBD_OPT_LIST:
		if (data.bytes == 0)
			option_list(connection);
		else
			reply_one(connection, option, NBD_REP_ERR_INVALID);
		break;
	case NBD_OPT_INFO:
	case NBD_OPT_GO:
		option_info(connection, option, data);
		break;
	case NBD_OPT_STRUCTURED_REPLY:
		connection->structured = connection->structured || data.bytes == 0;
		reply_one(connection, option, data.bytes == 0 ? NBD_REP_ACK : NBD_REP_ERR_INVALID);
		break;
	case NBD_OPT_LIST_META_CONTEXT:
	case NBD_OPT_SET_META_CONTEXT:
		option_meta_context(connection, option, data);
		break;
	default:
		reply_one(connection, option, NBD_REP_ERR_UNSUP);
		break;
	}
}

bool nbd_take_option(struct nbd_connection *connection)
{
	const uint8_t *header = nbd_inbox(connection);
	uint32_t option, length;

	if (connection->outbox_bytes - connection->outbox_sent > NBD_OUTBOX_BYTES_HIGH) {
		connection->blocked = NBD_BLOCKED_OWN;
		return false;
	}
	if (nbd_inbox_bytes(connection) < NBD_OPTION_BYTES)
		return false;
	option = nbd_get32(header + 8);
	length = nbd_get32(header + 12);
	if (nbd_get64(header) != NBD_MAGIC_OPTION || length > NBD_OPTION_DROP_BYTES ||
	    connection->option_count == NBD_OPTIONS_MAX ||
	    (option == NBD_OPT_EXPORT_NAME && length > NBD_STRING_BYTES_MAX)) {
		nbd_violation(connection);
		return false;
	}
	if (length <= NBD_OPTION_DATA_BYTES_MAX && nbd_inbox_bytes(connection) - NBD_OPTION_BYTES < length)
		return false;
	connection->option_count++;
	connection->inbox_start += NBD_OPTION_BYTES;
	if (length > NBD_OPTION_DATA_BYTES_MAX) {
		connection->skip_bytes = length;
		connection->stage = NBD_STAGE_SKIP;
		reply_one(connection, option, NBD_REP_ERR_TOO_BIG);
		return true;
	}
	connection->inbox_start += length;
	option_handle(connection, option, (struct data){ header + NBD_OPTION_BYTES, length });
	return true;
}
