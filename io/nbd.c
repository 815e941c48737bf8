/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The NBD server: fixed newstyle over a unix socket, any number of exports, many connections.
 *
 *	            recv: one large read a wake-up,                   one sendmsg a turn:
 *	            a write's payload straight to its buffer          headers and data, nothing copied
 *	   client ────────────> inbox ──> parse ──> engine ──> done ──> replies ────────────> client
 *	                                    │                    │
 *	                                  arena                arena
 *
 * A turn: what came from clients is parsed, and the engine is entered, from the loop's sources and timers; what was
 * completed is encoded and sent, and memory given back, from the hook at the turn's end ("settling"). So complete()
 * only takes a note, the engine is never entered from the hook, and whatever sending makes possible (a request that
 * waited for a buffer) is begun in the turn that follows at once.
 *
 * A connection's input is blocked, that is, its socket is not read, while its pool of requests is used up, while it
 * holds its share of the arena (a quarter, but one request of the largest size at least), or while it waits for the
 * arena. A socket is watched for a hang-up even so; after it, only while there is something to read, so it can't spin.
 *
 * Its ends:
 *	end   no more input (DISC, end of file, its export is gone). What is with the engine is answered, then it
 *	      closes; who doesn't take those last replies in time is dropped. A client that has closed takes none: they
 *	      are discarded, but what it had sent before it closed is still carried out.
 *	drop  closed at once: broken protocol, broken socket, deadline. Requests in flight complete into the void.
 * In both, the structure is freed by a settling, when the engine holds none of its requests: never under a caller's
 * feet.
 *
 * Pace. A disk may answer many requests at once, and where client and server come to share a CPU, as the scheduler often
 * has it, a long row of replies would have the disk idle until the client has seen the last of them. So after
 * PACE_REPLIES replies the others wait until the client has sent something, or PACE_NS have passed. A client that sends
 * nothing then has none of this for a while: for 1 long row, then 2, 4, ... PACE_OFF_MAX.
 *
 * What a client can do to others. At most connections_max connections are held; a further one is closed at once. In the
 * arena's queue a connection has one place, first come, first served. Memory in a client's hands (replies it doesn't
 * take, a payload it doesn't send) is watched while anybody waits for the arena: what a client holds up at one check
 * has to be gone within stall_ns, else it is dropped. So a single silent client delays others by little more than
 * stall_ns (and only when they need what it holds), and N hostile ones, each taking all it can again and again, delay a
 * request by the time of those before it in the queue: at most N times that. They can slow others down, they cannot
 * stop them. All of them are the same user's processes, or root's: others can't connect.
 */
#include "io/nbd-connection.h"

#include <assert.h>
#include <errno.h>
#include <limits.h>
#include <linux/sockios.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include "io/log.h"
#include "io/socket.h"

#define SECOND_NS UINT64_C(1000000000)
#define ACCEPTS_PER_TURN_MAX 16
#define ACCEPT_AGAIN_NS (SECOND_NS / 5)
#define STALL_CHECKS 8 /* in stall_ns */
#define SEND_IOV_MAX (1 + 2 * NBD_IN_FLIGHT_MAX)
#define PACE_REPLIES 8u
#define PACE_NS UINT64_C(200000)
#define PACE_OFF_MAX 256u

_Static_assert(SEND_IOV_MAX <= IOV_MAX, "all replies fit one sendmsg");

static const struct nbd_limits usual_limits = {
	.handshake_ns = 10 * SECOND_NS,
	.drain_ns = 10 * SECOND_NS,
	.stall_ns = 60 * SECOND_NS,
	.connections_max = 256,
};

static struct nbd *nbd_of(struct transport *transport)
{
	return container_of(transport, struct nbd, transport);
}

static const struct nbd *nbd_of_const(const struct transport *transport)
{
	return (const struct nbd *)(const void *)((const char *)transport - offsetof(struct nbd, transport));
}

/* The next turn begins without waiting. */
static void work_soon(struct nbd *nbd)
{
	if (list_is_empty(&nbd->work.link))
		loop_timer_set(nbd->loop, &nbd->work, 0);
}

void nbd_touch(struct nbd_connection *connection)
{
	struct nbd *nbd = connection->nbd;

	if (!list_is_empty(&connection->touched_link))
		return;
	list_append(&nbd->touched, &connection->touched_link);
	work_soon(nbd);
}

void nbd_unblock(struct nbd_connection *connection)
{
	connection->blocked = NBD_BLOCKED_NOT;
	list_remove(&connection->runnable_link);
	list_append(&connection->nbd->runnable, &connection->runnable_link);
	work_soon(connection->nbd);
}

static void input_stop(struct nbd_connection *connection, enum nbd_stage stage)
{
	struct nbd *nbd = connection->nbd;

	connection->stage = stage;
	connection->blocked = NBD_BLOCKED_NOT;
	list_remove(&connection->runnable_link);
	arena_cancel(nbd->arena, &connection->waiter);
	nbd_touch(connection);
}

void nbd_end(struct nbd_connection *connection)
{
	struct nbd *nbd = connection->nbd;

	if (connection->stage == NBD_STAGE_ENDING || connection->stage == NBD_STAGE_DEAD)
		return;
	input_stop(connection, NBD_STAGE_ENDING);
	loop_timer_set(nbd->loop, &connection->deadline, loop_now_ns(nbd->loop) + nbd->limits.drain_ns);
}

void nbd_drop(struct nbd_connection *connection)
{
	if (connection->stage == NBD_STAGE_DEAD)
		return;
	input_stop(connection, NBD_STAGE_DEAD);
	loop_timer_cancel(&connection->deadline);
	loop_timer_cancel(&connection->pace);
	loop_remove(connection->nbd->loop, &connection->source);
	(void)close(connection->source.fd);
	connection->source.fd = -1;
}

void nbd_violation(struct nbd_connection *connection)
{
	connection->nbd->counters.protocol_errors++;
	nbd_drop(connection);
}

static bool take_skipped(struct nbd_connection *connection)
{
	size_t here = nbd_inbox_bytes(connection);

	if (here > connection->skip_bytes)
		here = connection->skip_bytes;
	connection->inbox_start += here;
	connection->skip_bytes -= (uint32_t)here;
	if (connection->skip_bytes > 0)
		return false;
	connection->stage = connection->export ? NBD_STAGE_COMMAND : NBD_STAGE_OPTION;
	return true;
}

static bool parse_step(struct nbd_connection *connection)
{
	switch (connection->stage) {
	case NBD_STAGE_CLIENT_FLAGS:
		return nbd_take_client_flags(connection);
	case NBD_STAGE_OPTION:
		return nbd_take_option(connection);
	case NBD_STAGE_COMMAND:
		return nbd_take_command(connection);
	case NBD_STAGE_MEMORY:
		return nbd_take_memory(connection);
	case NBD_STAGE_PAYLOAD:
		return nbd_take_payload(connection);
	case NBD_STAGE_SKIP:
		return take_skipped(connection);
	case NBD_STAGE_ENDING:
	case NBD_STAGE_DEAD:
		break;
	}
	return false;
}

/* Every step that says true has taken bytes from the inbox, or has used what those before it took: this ends. */
static void parse(struct nbd_connection *connection)
{
	while (parse_step(connection))
		;
	nbd_touch(connection);
}

static bool wants_input(const struct nbd_connection *connection)
{
	return connection->blocked == NBD_BLOCKED_NOT && connection->stage != NBD_STAGE_ENDING &&
	       connection->stage != NBD_STAGE_DEAD && list_is_empty(&connection->runnable_link);
}

/* One read: first what is missing of a payload, to its place, then whatever follows it. */
static ssize_t receive_some(struct nbd_connection *connection)
{
	struct iovec iov[2];
	size_t left = nbd_inbox_bytes(connection), missing = 0, received, payload;
	uint8_t *to = NULL;
	int count = 0;
	ssize_t got;

	memmove(connection->inbox, nbd_inbox(connection), left);
	connection->inbox_start = 0;
	connection->inbox_end = left;
	if (connection->stage == NBD_STAGE_PAYLOAD) {
		assert(left == 0);
		missing = connection->current->request.length - connection->payload_received;
		to = connection->current->buffer + connection->payload_received;
		iov[count++] = (struct iovec){ to, missing };
	}
	assert(left < NBD_INBOX_BYTES);
	iov[count++] = (struct iovec){ connection->inbox + left, NBD_INBOX_BYTES - left };
	got = readv(connection->source.fd, iov, count);
	if (got <= 0)
		return got == 0 ? 0 : -errno;
	received = (size_t)got;
	payload = received < missing ? received : missing;
	connection->payload_received += (uint32_t)payload;
	connection->inbox_end += received - payload;
	connection->received_bytes += received;
	connection->nbd->counters.bytes_received += received;
	return got;
}

/*
 * The client has closed. What it had sent is still carried out, but it shall not stand in others' way in the arena's
 * queue for nothing: not for a read, nor for a write whose payload will never be complete.
 */
static void hung_up(struct nbd_connection *connection)
{
	int unread = 0;

	connection->mute = true;
	if (connection->stage != NBD_STAGE_MEMORY || connection->current->buffer)
		return;
	if (connection->current->request.op != REQUEST_WRITE)
		nbd_forgo_read(connection);
	else if (ioctl(connection->source.fd, SIOCINQ, &unread) == 0 &&
		 nbd_inbox_bytes(connection) + (size_t)unread < connection->current->request.length)
		nbd_end(connection);
}

static bool is_paced(const struct nbd_connection *connection)
{
	return !list_is_empty(&connection->pace.link);
}

/* The client has sent something while replies waited for that. */
static void pace_heard(struct nbd_connection *connection)
{
	loop_timer_cancel(&connection->pace);
	connection->pace_waits /= 2;
	connection->nbd->counters.pace_heard++;
}

static void connection_ready(struct loop_source *source, uint32_t events)
{
	struct nbd_connection *connection = source->context;
	ssize_t got;

	nbd_touch(connection);
	if (events & EPOLLHUP)
		hung_up(connection);
	if (!wants_input(connection))
		return;
	got = receive_some(connection);
	if (got > 0) {
		if (is_paced(connection))
			pace_heard(connection);
		parse(connection);
	} else if (got != -EAGAIN && got != -EINTR) {
		nbd_end(connection);
	}
}

/* Fills `iov` with what is to be sent, but no more than `limit` replies. Returns how many pieces there are. */
static size_t gather(const struct nbd_connection *connection, struct iovec *iov, unsigned limit)
{
	size_t said = connection->outbox_bytes - connection->outbox_sent, skip = connection->first_sent;
	size_t count = 0;

	if (said > 0)
		iov[count++] = (struct iovec){ connection->outbox + connection->outbox_sent, said };
	list_for_each(link, &connection->replies) {
		struct nbd_request *reply = container_of(link, struct nbd_request, link);
		size_t data_skip = 0;

		if (limit-- == 0)
			break;
		if (skip < reply->header_bytes)
			iov[count++] = (struct iovec){ reply->header + skip, reply->header_bytes - skip };
		else
			data_skip = skip - reply->header_bytes;
		if (data_skip < reply->data_bytes)
			iov[count++] = (struct iovec){ (uint8_t *)(uintptr_t)reply->data + data_skip,
						       reply->data_bytes - data_skip };
		skip = 0;
	}
	return count;
}

/* Takes note that `bytes` more were sent, and gives back what was sent whole. */
static void sent(struct nbd_connection *connection, size_t bytes)
{
	size_t said = connection->outbox_bytes - connection->outbox_sent;

	connection->sent_bytes += bytes;
	connection->nbd->counters.bytes_sent += bytes;
	if (bytes < said) {
		connection->outbox_sent += bytes;
		return;
	}
	connection->freed = connection->freed || said > 0;
	connection->outbox_sent = 0;
	connection->outbox_bytes = 0;
	bytes -= said;
	connection->unsent_bytes -= bytes;
	bytes += connection->first_sent;
	while (!list_is_empty(&connection->replies)) {
		struct list *link = connection->replies.next;
		struct nbd_request *reply = container_of(link, struct nbd_request, link);
		size_t whole = (size_t)reply->header_bytes + reply->data_bytes;

		if (bytes < whole)
			break;
		bytes -= whole;
		list_remove(link);
		nbd_request_release(connection, reply);
	}
	connection->first_sent = bytes;
}

/* The client will never take them. */
static void replies_discard(struct nbd_connection *connection)
{
	struct list *link;

	while ((link = list_pop(&connection->replies)) != NULL)
		nbd_request_release(connection, container_of(link, struct nbd_request, link));
	connection->first_sent = 0;
	connection->unsent_bytes = 0;
	connection->outbox_bytes = 0;
	connection->outbox_sent = 0;
}

static bool has_unsent(const struct nbd_connection *connection)
{
	return connection->outbox_bytes > 0 || connection->unsent_bytes > 0;
}

/* Sends as much as the socket takes, of `limit` replies at most. */
static void send_replies(struct nbd_connection *connection, unsigned limit)
{
	struct iovec iov[SEND_IOV_MAX];
	struct msghdr message = { .msg_iov = iov };
	ssize_t result;

	message.msg_iovlen = gather(connection, iov, limit);
	result = sendmsg(connection->source.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
	if (result >= 0)
		sent(connection, (size_t)result);
	else if (errno == EPIPE || errno == ECONNRESET)
		connection->mute = true;
	else if (errno != EAGAIN && errno != EINTR)
		nbd_drop(connection);
}

/* The client had nothing to send: the rest goes out, and the next rows as they are. */
static void pace_expired(struct loop_timer *timer)
{
	struct nbd_connection *connection = timer->context;
	int unread = 0;

	nbd_touch(connection);
	/* Timers come before sources: after a long turn it may have sent something in time, to be read only now. */
	if (ioctl(connection->source.fd, SIOCINQ, &unread) == 0 && unread > 0) {
		pace_heard(connection);
		return;
	}
	connection->nbd->counters.pace_silent++;
	connection->pace_waits = connection->pace_waits == 0 ? 1 : connection->pace_waits * 2;
	if (connection->pace_waits > PACE_OFF_MAX)
		connection->pace_waits = PACE_OFF_MAX;
	connection->pace_off = connection->pace_waits;
}

static bool has_long_row(const struct nbd_connection *connection)
{
	unsigned count = 0;

	list_for_each(link, &connection->replies)
		if (++count > PACE_REPLIES)
			return true;
	return false;
}

static void send_paced(struct nbd_connection *connection)
{
	struct nbd *nbd = connection->nbd;
	unsigned limit = NBD_IN_FLIGHT_MAX;

	/* Who cannot send, or would not be heard, is not waited for. */
	if (has_long_row(connection) && loop_is_fine(nbd->loop) && wants_input(connection) &&
	    connection->stage == NBD_STAGE_COMMAND) {
		if (connection->pace_off > 0)
			connection->pace_off--;
		else
			limit = PACE_REPLIES;
	}
	send_replies(connection, limit);
	if (limit == PACE_REPLIES && connection->first_sent == 0 && connection->stage != NBD_STAGE_DEAD &&
	    !connection->mute && !list_is_empty(&connection->replies))
		loop_timer_set(nbd->loop, &connection->pace, loop_clock_ns() + PACE_NS);
}

/* Watches the socket for what is wanted now, and for a hang-up, until there was one. */
static void watch(struct nbd_connection *connection)
{
	struct loop *loop = connection->nbd->loop;
	uint32_t events = (wants_input(connection) ? (uint32_t)EPOLLIN : 0) |
			  (has_unsent(connection) && !is_paced(connection) ? (uint32_t)EPOLLOUT : 0) |
			  (connection->mute ? 0 : (uint32_t)EPOLLHUP);
	int error = 0;

	if (events == connection->events)
		return;
	if (events == 0)
		loop_remove(loop, &connection->source);
	else if (connection->events == 0)
		error = loop_add(loop, &connection->source, events);
	else
		error = loop_modify(loop, &connection->source, events);
	connection->events = events;
	if (error != 0)
		nbd_drop(connection);
}

static void connection_free(struct nbd_connection *connection)
{
	struct nbd *nbd = connection->nbd;

	assert(connection->engine_count == 0 && connection->held_bytes == 0 && !connection->current);
	list_remove(&connection->link);
	list_remove(&connection->touched_link);
	if (connection->export)
		export_close(connection->export);
	free(connection->outbox);
	free(connection);
	nbd->counters.connections_now--;
	if (nbd->counters.connections_now == 0)
		loop_timer_cancel(&nbd->stall_check);
}

/* The turn's end for a connection: replies go out, memory comes back, and the connection too when it is through. */
static void settle(struct nbd_connection *connection)
{
	nbd_encode_replies(connection);
	if (has_unsent(connection) && !connection->mute && connection->stage != NBD_STAGE_DEAD && !is_paced(connection))
		send_paced(connection);
	if (connection->mute || connection->stage == NBD_STAGE_DEAD)
		replies_discard(connection);
	if (connection->export && connection->export->gone && connection->engine_count == 0)
		nbd_end(connection);
	if ((connection->stage == NBD_STAGE_ENDING || connection->stage == NBD_STAGE_DEAD) && connection->current) {
		nbd_request_release(connection, connection->current);
		connection->current = NULL;
	}
	if (connection->stage == NBD_STAGE_ENDING && connection->engine_count == 0 && !has_unsent(connection))
		nbd_drop(connection);
	if (connection->stage == NBD_STAGE_DEAD) {
		if (connection->engine_count == 0)
			connection_free(connection);
		return;
	}
	if (connection->blocked == NBD_BLOCKED_OWN && connection->freed)
		nbd_unblock(connection);
	connection->freed = false;
	watch(connection);
}

static void turn_end(struct loop_hook *hook)
{
	struct nbd *nbd = hook->context;
	struct list *link;

	while ((link = list_pop(&nbd->touched)) != NULL)
		settle(container_of(link, struct nbd_connection, touched_link));
	if (list_is_empty(&nbd->runnable))
		loop_timer_cancel(&nbd->work);
}

static void work_expired(struct loop_timer *timer)
{
	struct nbd *nbd = timer->context;
	struct list *link;

	while ((link = list_pop(&nbd->runnable)) != NULL)
		parse(container_of(link, struct nbd_connection, runnable_link));
}

static void deadline_expired(struct loop_timer *timer)
{
	struct nbd_connection *connection = timer->context;
	struct nbd *nbd = connection->nbd;
	bool through = connection->engine_count == 0 &&
		       (connection->stage == NBD_STAGE_ENDING || has_unsent(connection));

	if (!connection->export || through)
		nbd_drop(connection);
	else
		loop_timer_set(nbd->loop, timer, loop_now_ns(nbd->loop) + nbd->limits.drain_ns);
}

static void stall_drop(struct nbd_connection *connection)
{
	struct ucred peer = { 0 };
	socklen_t length = sizeof(peer);

	(void)getsockopt(connection->source.fd, SOL_SOCKET, SO_PEERCRED, &peer, &length);
	log_warning("nbd: dropped the client with process id %ld: for %llu s it held up memory that others wait for",
		    (long)peer.pid, (unsigned long long)(connection->nbd->limits.stall_ns / SECOND_NS));
	nbd_drop(connection);
}

static void stall_watch(struct nbd_connection *connection, uint64_t now_ns)
{
	uint64_t missing = 0;

	if (connection->stage == NBD_STAGE_PAYLOAD)
		missing = connection->current->request.length - connection->payload_received;
	if (missing == 0 && connection->unsent_bytes == 0) {
		connection->stall_due_ns = 0;
		return;
	}
	if (connection->stall_due_ns != 0 && (connection->sent_bytes < connection->stall_sent ||
					      connection->received_bytes < connection->stall_received)) {
		if (now_ns >= connection->stall_due_ns)
			stall_drop(connection);
		return;
	}
	connection->stall_sent = connection->sent_bytes + connection->unsent_bytes;
	connection->stall_received = connection->received_bytes + missing;
	connection->stall_due_ns = now_ns + connection->nbd->limits.stall_ns;
}

static void stall_check_expired(struct loop_timer *timer)
{
	struct nbd *nbd = timer->context;
	uint64_t now_ns = loop_now_ns(nbd->loop);
	bool wanted = arena_is_wanted(nbd->arena);

	list_for_each(link, &nbd->connections) {
		struct nbd_connection *connection = container_of(link, struct nbd_connection, link);

		if (connection->stage == NBD_STAGE_DEAD || !wanted)
			connection->stall_due_ns = 0;
		else
			stall_watch(connection, now_ns);
	}
	loop_timer_set(nbd->loop, timer, now_ns + nbd->limits.stall_ns / STALL_CHECKS);
}

static void connection_init(struct nbd_connection *connection, struct nbd *nbd, int fd)
{
	connection->nbd = nbd;
	connection->source = (struct loop_source){ .fd = fd, .ready = connection_ready, .context = connection };
	connection->waiter = (struct arena_waiter){ .granted = nbd_memory_granted, .context = connection };
	list_init(&connection->waiter.link);
	list_init(&connection->link);
	list_init(&connection->runnable_link);
	list_init(&connection->touched_link);
	list_init(&connection->done);
	list_init(&connection->replies);
	list_init(&connection->free_requests);
	loop_timer_init(&connection->deadline, deadline_expired, connection);
	loop_timer_init(&connection->pace, pace_expired, connection);
}

static void connection_begin(struct nbd *nbd, int fd)
{
	uint64_t now_ns = loop_now_ns(nbd->loop);
	struct nbd_connection *connection;

	if (nbd->counters.connections_now >= nbd->limits.connections_max) {
		if (!nbd->full_noted)
			log_warning("nbd: %u clients are connected, further ones are refused",
				    nbd->limits.connections_max);
		nbd->full_noted = true;
		(void)close(fd);
		return;
	}
	connection = calloc(1, sizeof(*connection));
	if (!connection) {
		(void)close(fd);
		return;
	}
	connection_init(connection, nbd, fd);
	list_append(&nbd->connections, &connection->link);
	nbd->full_noted = false;
	nbd->counters.connections_total++;
	if (nbd->counters.connections_now++ == 0)
		loop_timer_set(nbd->loop, &nbd->stall_check, now_ns + nbd->limits.stall_ns / STALL_CHECKS);
	loop_timer_set(nbd->loop, &connection->deadline, now_ns + nbd->limits.handshake_ns);
	nbd_greet(connection);
}

static void listener_watch(struct nbd *nbd)
{
	if (loop_add(nbd->loop, &nbd->listener, EPOLLIN) != 0)
		loop_timer_set(nbd->loop, &nbd->accept_again, loop_now_ns(nbd->loop) + ACCEPT_AGAIN_NS);
}

/* Without descriptors or memory to accept with, the listener stays ready: it is left alone for a while. */
static void listener_pause(struct nbd *nbd)
{
	loop_remove(nbd->loop, &nbd->listener);
	loop_timer_set(nbd->loop, &nbd->accept_again, loop_now_ns(nbd->loop) + ACCEPT_AGAIN_NS);
}

static void accept_again_expired(struct loop_timer *timer)
{
	listener_watch(timer->context);
}

static void listener_ready(struct loop_source *source, uint32_t events)
{
	struct nbd *nbd = source->context;

	(void)events;
	for (int i = 0; i < ACCEPTS_PER_TURN_MAX; i++) {
		int fd = socket_accept(source->fd);

		if (fd >= 0)
			connection_begin(nbd, fd);
		else if (fd == -EAGAIN)
			return;
		else if (fd != -EPERM && fd != -EINTR && fd != -ECONNABORTED) {
			listener_pause(nbd);
			return;
		}
	}
}

static void export_removed(struct export_watcher *watcher, struct export *export)
{
	struct nbd *nbd = watcher->context;

	list_for_each(link, &nbd->connections) {
		struct nbd_connection *connection = container_of(link, struct nbd_connection, link);

		if (connection->export == export)
			nbd_touch(connection);
	}
}

/* The path goes while the socket still answers there, so it can't be somebody else's by now. */
static void listener_close(struct nbd *nbd)
{
	if (nbd->listener.fd < 0)
		return;
	loop_timer_cancel(&nbd->accept_again);
	loop_remove(nbd->loop, &nbd->listener);
	(void)unlink(nbd->path);
	(void)close(nbd->listener.fd);
	nbd->listener.fd = -1;
}

static void nbd_quiesce(struct transport *transport)
{
	struct nbd *nbd = nbd_of(transport);

	if (nbd->quiesced)
		return;
	nbd->quiesced = true;
	listener_close(nbd);
	list_for_each(link, &nbd->connections) {
		struct nbd_connection *connection = container_of(link, struct nbd_connection, link);

		if (connection->stage != NBD_STAGE_DEAD && connection->export)
			loop_timer_set(nbd->loop, &connection->deadline,
				       loop_now_ns(nbd->loop) + nbd->limits.drain_ns);
	}
}

static bool nbd_is_idle(const struct transport *transport)
{
	const struct nbd *nbd = nbd_of_const(transport);

	list_for_each(link, &nbd->connections) {
		const struct nbd_connection *connection = container_of(link, struct nbd_connection, link);

		if (connection->engine_count > 0 || !list_is_empty(&connection->done) ||
		    (connection->unsent_bytes > 0 && connection->stage != NBD_STAGE_DEAD))
			return false;
	}
	return true;
}

static void nbd_close(struct transport *transport)
{
	struct nbd *nbd = nbd_of(transport);

	listener_close(nbd);
	list_for_each(link, &nbd->connections)
		nbd_drop(container_of(link, struct nbd_connection, link));
	turn_end(&nbd->hook);
	assert(list_is_empty(&nbd->connections));
	loop_timer_cancel(&nbd->work);
	loop_timer_cancel(&nbd->stall_check);
	loop_hook_remove(&nbd->hook);
	list_remove(&nbd->watcher.link);
	free(nbd);
}

static const struct transport_ops nbd_transport_ops = {
	.quiesce = nbd_quiesce,
	.is_idle = nbd_is_idle,
	.close = nbd_close,
};

static void nbd_init(struct nbd *nbd, struct loop *loop, struct export_table *exports, struct arena *arena)
{
	size_t quarter = arena_bytes(arena) / 4;

	nbd->transport.ops = &nbd_transport_ops;
	nbd->loop = loop;
	nbd->exports = exports;
	nbd->arena = arena;
	nbd->connection_bytes_max = quarter > REQUEST_DATA_BYTES_MAX ? quarter : REQUEST_DATA_BYTES_MAX;
	list_init(&nbd->connections);
	list_init(&nbd->runnable);
	list_init(&nbd->touched);
	loop_timer_init(&nbd->accept_again, accept_again_expired, nbd);
	loop_timer_init(&nbd->work, work_expired, nbd);
	loop_timer_init(&nbd->stall_check, stall_check_expired, nbd);
	nbd->hook = (struct loop_hook){ .turn_end = turn_end, .context = nbd };
	nbd->watcher = (struct export_watcher){ .removed = export_removed, .context = nbd };
}

int nbd_start_limited(struct loop *loop, struct export_table *exports, struct arena *arena, const char *path,
		      const struct nbd_limits *limits, struct transport **transport)
{
	struct nbd *nbd;
	int fd;

	assert(arena_bytes(arena) > REQUEST_DATA_BYTES_MAX);
	nbd = calloc(1, sizeof(*nbd));
	if (!nbd)
		return -ENOMEM;
	fd = socket_listen(path);
	if (fd < 0) {
		free(nbd);
		return fd;
	}
	nbd_init(nbd, loop, exports, arena);
	nbd->limits = *limits;
	memcpy(nbd->path, path, strlen(path) + 1); /* socket_listen() took it, so it fits */
	nbd->listener = (struct loop_source){ .fd = fd, .ready = listener_ready, .context = nbd };
	listener_watch(nbd);
	loop_hook_add(loop, &nbd->hook);
	list_append(&exports->watchers, &nbd->watcher.link);
	*transport = &nbd->transport;
	return 0;
}

int nbd_start(struct loop *loop, struct export_table *exports, struct arena *arena, const char *path,
	      struct transport **transport)
{
	return nbd_start_limited(loop, exports, arena, path, &usual_limits, transport);
}

void nbd_get_counters(const struct transport *transport, struct nbd_counters *counters)
{
	*counters = nbd_of_const(transport)->counters;
}
