/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The control socket: good clients, bad clients, many clients; and the lines on stderr, which are the other way to talk
 * to the administrator. Server and clients share this thread: the loop is turned by hand.
 */
#include "io/control.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "io/log.h"
#include "io/socket.h"
#include "tests/unit/unit.h"

#define PATH_BYTES 128u

/* What the owner does with a request: as its "do" says. */
struct server {
	struct loop *loop;
	struct control *control;
	struct control_client *last, *held;
	unsigned requests, closed, closed_unknown;
	bool reply_when_closed;
};

static void reply_text(struct control_client *client, const char *key, const char *text)
{
	struct json_object *reply = json_object_new_object();

	json_object_object_add(reply, key, json_object_new_string(text));
	control_reply(client, reply);
}

static void reply_large(struct control_client *client, size_t bytes)
{
	char *text = malloc(bytes + 1);

	if (!text)
		abort();
	memset(text, 'x', bytes);
	text[bytes] = '\0';
	reply_text(client, "large", text);
	free(text);
}

static void on_request(void *context, struct control_client *client, struct json_object *request)
{
	struct server *server = context;
	const char *what = json_object_get_string(json_object_object_get(request, "do"));

	server->requests++;
	server->last = client;
	if (!control_client_data(client))
		control_client_set_data(client, server);
	if (!what)
		return;
	if (strcmp(what, "echo") == 0) {
		control_reply(client, json_object_get(request));
	} else if (strcmp(what, "hold") == 0) {
		server->held = client;
	} else if (strcmp(what, "large") == 0) {
		reply_large(client, 1000000);
	} else if (strcmp(what, "flood") == 0) {
		for (unsigned i = 0; i < 40; i++)
			reply_large(client, 1000000);
		reply_text(client, "after", "flood");
	} else if (strcmp(what, "stop") == 0) {
		reply_text(client, "answer", "bye");
		control_stop(server->control);
		server->control = NULL;
	}
}

static void on_closed(void *context, struct control_client *client)
{
	struct server *server = context;

	server->closed++;
	if (control_client_data(client) != server)
		server->closed_unknown++;
	if (client == server->held)
		server->held = NULL;
	if (server->reply_when_closed)
		reply_text(client, "too", "late");
}

static const struct control_ops ops = { .request = on_request, .closed = on_closed };

static void turn(struct server *server, unsigned turns)
{
	for (unsigned i = 0; i < turns; i++) {
		if (loop_turn(server->loop, 0) < 0)
			abort();
	}
}

static void send_text(int fd, const char *text)
{
	if (send(fd, text, strlen(text), MSG_NOSIGNAL) != (ssize_t)strlen(text))
		abort();
}

/* The next line's value of `key` is `text`. */
static bool next_is(int fd, struct control_buffer *buffer, const char *key, const char *text)
{
	struct json_object *reply = NULL;
	const char *value;
	bool ok;

	if (control_receive(fd, buffer, &reply) < 0)
		return false;
	value = json_object_get_string(json_object_object_get(reply, key));
	ok = value && (!text || strcmp(value, text) == 0);
	json_object_put(reply);
	return ok;
}

/* With a time limit: an answer that does not come fails a check and hangs nothing. */
static int connect_to(const char *path)
{
	const struct timeval limit = { .tv_sec = 10 };
	const int fd = control_connect(path);

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) < 0)
		abort();
	return fd;
}

static struct json_object *make_request(const char *what)
{
	struct json_object *request = json_object_new_object();

	json_object_object_add(request, "do", json_object_new_string(what));
	return request;
}

static void test_talk(struct server *server, const char *path)
{
	struct control_buffer buffer = { 0 };
	struct json_object *reply;
	struct stat status;
	int fd = connect_to(path);

	check("the socket is its owner's only", stat(path, &status) == 0 && S_ISSOCK(status.st_mode) &&
							  (status.st_mode & 0777) == 0600);
	check("a request is sent", control_send(fd, make_request("echo")) == 0);
	turn(server, 3);
	check("... and answered", next_is(fd, &buffer, "do", "echo"));
	send_text(fd, "{\"do\":\"echo\",\"n\":\"1\"}\n{\"do\":\"echo\",\"n\":\"2\"}\n{\"do\":");
	turn(server, 3);
	check("several in one piece are answered in order",
	      next_is(fd, &buffer, "n", "1") && next_is(fd, &buffer, "n", "2"));
	send_text(fd, "\"echo\",\"n\":\"\\u00e9\\n/\"}");
	turn(server, 3);
	send_text(fd, "\n");
	turn(server, 3);
	check("... and what comes in pieces when it is whole", next_is(fd, &buffer, "n", "\xc3\xa9\n/"));
	send_text(fd, "{\"do\":\"hold\"}\n");
	turn(server, 3);
	reply_text(server->held, "answer", "late");
	reply_text(server->held, "answer", "later");
	check("answers may come at any time", next_is(fd, &buffer, "answer", "late") &&
						     next_is(fd, &buffer, "answer", "later"));
	server->closed = 0;
	(void)close(fd);
	turn(server, 3);
	check("the owner learns that a client has gone, once", server->closed == 1 && !server->held);
	control_buffer_free(&buffer);

	fd = connect_to(path);
	server->requests = 0;
	send_text(fd, "{\"do\":\"echo\"");
	turn(server, 2);
	(void)close(fd);
	turn(server, 3);
	check("half a line and then nothing is no request", server->requests == 0 && server->closed == 2);

	fd = connect_to(path);
	send_text(fd, "{\"do\":\"hold\"}\n");
	turn(server, 3);
	control_stop(server->control);
	server->control = NULL;
	check("stopping tells of every client", server->closed == 3 && !server->held);
	check("... the client sees the end", control_receive(fd, &buffer, &reply) == -EPIPE);
	check("... and the socket is gone", access(path, F_OK) < 0 && errno == ENOENT);
	check("nobody answers there", control_connect(path) == -ENOENT);
	(void)close(fd);
	control_buffer_free(&buffer);
}

/* Sends what is no request: there shall be one error, and then the end. */
static bool is_refused(struct server *server, const char *path, const char *bytes, size_t count)
{
	struct control_buffer buffer = { 0 };
	struct json_object *reply = NULL;
	const int fd = connect_to(path);
	const unsigned closed = server->closed, requests = server->requests;
	bool ok;

	ok = send(fd, bytes, count, MSG_NOSIGNAL) == (ssize_t)count;
	turn(server, 4);
	ok = ok && next_is(fd, &buffer, "error", NULL);
	ok = ok && control_receive(fd, &buffer, &reply) == -EPIPE;
	ok = ok && server->closed == closed + 1 && server->requests == requests;
	(void)close(fd);
	control_buffer_free(&buffer);
	return ok;
}

static void test_garbage(struct server *server, const char *path)
{
	static const char deep[] = "{\"a\":[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]}\n";
	static const char nul[] = "{\"a\":\"b\0c\"}\n";
	static const struct {
		const char *text, *what;
	} cases[] = {
		{ "hello\n", "a word is refused" },
		{ "\n", "an empty line is refused" },
		{ "[1]\n", "an array is refused" },
		{ "12\n", "a number is refused" },
		{ "null\n", "null is refused" },
		{ "{\"a\":1} x\n", "something after the object is refused" },
		{ "{\"a\":1}{\"a\":1}\n", "two objects in a line are refused" },
		{ "{\"a\":\n", "half an object is refused" },
		{ "{\"a\":'b'}\n", "loose quoting is refused" },
		{ "{\"a\":\"\xff\"}\n", "what is not UTF-8 is refused" },
		{ "{\"a\":\"\xc0\x80\"}\n", "an overlong form is refused" },
		{ "{\"a\":\"\xed\xa0\x80\"}\n", "a surrogate is refused" },
		{ "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "another protocol is refused" },
	};

	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
		check(cases[i].what, is_refused(server, path, cases[i].text, strlen(cases[i].text)));
	check("depth without end is refused", is_refused(server, path, deep, sizeof(deep) - 1));
	check("NUL bytes are refused", is_refused(server, path, nul, sizeof(nul) - 1));
}

/* Ten megabytes and no newline: one error, and the sender is cut off. */
static void test_endless_line(struct server *server, const char *path)
{
	static char chunk[65536];
	struct control_buffer buffer = { 0 };
	struct json_object *reply;
	const int fd = connect_to(path);
	size_t sent = 0;

	memset(chunk, 'a', sizeof(chunk));
	for (unsigned i = 0; i < 2000 && sent < (10u << 20); i++) {
		const ssize_t bytes = send(fd, chunk, sizeof(chunk), MSG_NOSIGNAL | MSG_DONTWAIT);

		if (bytes < 0 && errno != EAGAIN)
			break;
		sent += bytes > 0 ? (size_t)bytes : 0;
		turn(server, 1);
	}
	check("a line without end is cut off", sent < (10u << 20));
	check("... with one error", next_is(fd, &buffer, "error", "line too long") &&
					    control_receive(fd, &buffer, &reply) == -EPIPE);
	(void)close(fd);
	control_buffer_free(&buffer);
}

static void test_longest_line(struct server *server, const char *path)
{
	static const char head[] = "{\"do\":\"hold\",\"x\":\"", tail[] = "\"}\n";
	char *line = malloc(CONTROL_LINE_BYTES_MAX + 1);
	const int fd = connect_to(path);

	if (!line)
		abort();
	memset(line, 'y', CONTROL_LINE_BYTES_MAX);
	memcpy(line, head, sizeof(head) - 1);
	memcpy(line + CONTROL_LINE_BYTES_MAX - (sizeof(tail) - 1), tail, sizeof(tail));
	server->requests = 0;
	send_text(fd, line);
	turn(server, 6);
	check("a line of the greatest length is a request", server->requests == 1);
	line[CONTROL_LINE_BYTES_MAX - 3] = 'y';
	check("... and the client's half sends no longer one",
	      control_send(fd, json_object_new_string(line)) == -EMSGSIZE);
	(void)close(fd);
	turn(server, 3);
	free(line);
}

/* A client that asks and asks, and never reads. */
static void test_deaf_client(struct server *server, const char *path)
{
	struct control_buffer buffer = { 0 };
	int fd = connect_to(path);
	unsigned count = 0;

	server->closed = 0;
	send_text(fd, "{\"do\":\"large\"}\n{\"do\":\"large\"}\n{\"do\":\"large\"}\n");
	turn(server, 3);
	check("a slow client is waited for", server->closed == 0);
	/* It reads now; what has come is taken out so that the next turn has room to send. */
	for (unsigned i = 0; i < 100000 && count < 3; i++) {
		char bytes[4096];
		const ssize_t got = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);

		for (ssize_t at = 0; at < got; at++)
			count += bytes[at] == '\n';
		turn(server, 1);
	}
	check("... and gets all of its answers", count == 3 && server->closed == 0);
	(void)close(fd);
	turn(server, 3);

	fd = connect_to(path);
	server->closed = 0;
	server->requests = 0;
	send_text(fd, "{\"do\":\"flood\"}\n{\"do\":\"echo\"}\n");
	turn(server, 3);
	check("one for whom too much waits is dropped, once, and not asked further",
	      server->closed == 1 && server->requests == 1);
	(void)close(fd);
	fd = connect_to(path);
	server->reply_when_closed = true;
	send_text(fd, "{\"do\":\"flood\"}\n");
	turn(server, 3);
	server->reply_when_closed = false;
	check("... and replies to it do no harm up to the last moment", server->closed == 2);
	(void)close(fd);
	fd = connect_to(path);
	send_text(fd, "{\"do\":\"echo\"}\n");
	turn(server, 3);
	check("others are served as before", next_is(fd, &buffer, "do", "echo"));
	(void)close(fd);
	turn(server, 3);
	control_buffer_free(&buffer);
}

/* A client that asks and is gone when the answer comes. */
static void test_vanished_client(struct server *server, const char *path)
{
	const int fd = connect_to(path);

	server->closed = 0;
	send_text(fd, "{\"do\":\"echo\"}\n{\"do\":\"large\"}\n{\"do\":\"echo\"}\n");
	(void)close(fd);
	turn(server, 6);
	check("answers to a client that vanished go nowhere, quietly", server->closed == 1);
}

static void test_many(struct server *server, const char *path)
{
	struct control_buffer buffer = { 0 };
	int fds[CONTROL_CLIENTS_MAX + 6];
	const unsigned count = sizeof(fds) / sizeof(fds[0]);
	unsigned answered = 0;
	int fd;

	server->closed = 0;
	for (unsigned i = 0; i < 1000; i++) {
		fd = connect_to(path);
		if (i % 3 == 0)
			send_text(fd, "{\"do\":\"echo\"}\n");
		(void)close(fd);
		if (i % 50 == 49)
			turn(server, 120);
	}
	turn(server, 200);
	check("a thousand clients come and go", server->closed == 1000);

	for (unsigned i = 0; i < count; i++) {
		fds[i] = connect_to(path);
		send_text(fds[i], "{\"do\":\"echo\"}\n");
	}
	server->requests = 0;
	turn(server, 300);
	check("so many at once are served", server->requests == CONTROL_CLIENTS_MAX);
	for (unsigned i = 0; i < count; i++) {
		answered += next_is(fds[i], &buffer, "do", "echo");
		(void)close(fds[i]);
		turn(server, 4);
	}
	check("... the others when there is room", answered == count);
	turn(server, 10);
	control_buffer_free(&buffer);
}

static void test_stop_within(struct server *server, const char *path)
{
	struct control_buffer buffer = { 0 };
	struct json_object *reply;
	const int fd = connect_to(path), other = connect_to(path);

	server->closed = 0;
	send_text(other, "{\"do\":\"hold\"}\n");
	turn(server, 3);
	send_text(fd, "{\"do\":\"stop\"}\n{\"do\":\"echo\"}\n");
	turn(server, 3);
	check("a request may stop it all", server->closed == 2 && !server->control);
	check("... what was answered before arrives", next_is(fd, &buffer, "answer", "bye") &&
							      control_receive(fd, &buffer, &reply) == -EPIPE);
	(void)close(fd);
	(void)close(other);
	control_buffer_free(&buffer);
}

static void test_path(struct server *server, const char *path)
{
	struct control *other;
	struct server second = { .loop = server->loop };
	int fd;

	check("a path that is in use is refused",
	      control_start(server->loop, path, &ops, server, &other) == -EADDRINUSE);
	(void)unlink(path);
	check("a path that was taken away", control_start(second.loop, path, &ops, &second, &second.control) == 0);
	control_stop(server->control);
	server->control = NULL;
	fd = control_connect(path);
	check("... and given to another server is not removed", fd >= 0);
	(void)close(fd);
	control_stop(second.control);
	fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	(void)close(fd);
	check("a file at the path is left alone",
	      control_start(server->loop, path, &ops, server, &other) == -EEXIST && access(path, F_OK) == 0);
	(void)unlink(path);
}

/* The client's half against a server that misbehaves. */
static void test_receive(void)
{
	struct control_buffer buffer = { 0 };
	struct json_object *reply = NULL;
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		abort();
	send_text(pair[0], "nonsense\n{\"a\":\"1\"}\n{\"a\":");
	check("a reply that is no object gives EBADMSG", control_receive(pair[1], &buffer, &reply) == -EBADMSG);
	check("... the one after it is found", next_is(pair[1], &buffer, "a", "1"));
	(void)close(pair[0]);
	check("... and half a reply is none", control_receive(pair[1], &buffer, &reply) == -EPIPE);
	check("sending where nobody is gives EPIPE and no signal",
	      control_send(pair[1], make_request("echo")) == -EPIPE);
	(void)close(pair[1]);
	control_buffer_free(&buffer);
}

/* What `log` writes to stderr, as one string. */
static void capture(bool warning, const char *text, char out[static 2048], size_t *bytes)
{
	int ends[2], saved = dup(STDERR_FILENO);
	ssize_t got;

	if (saved < 0 || pipe(ends) < 0 || dup2(ends[1], STDERR_FILENO) < 0)
		abort();
	if (warning)
		log_warning("%s", text);
	else
		log_notice("%s", text);
	got = read(ends[0], out, 2047);
	*bytes = got > 0 ? (size_t)got : 0;
	out[*bytes] = '\0';
	(void)dup2(saved, STDERR_FILENO);
	(void)close(saved);
	(void)close(ends[0]);
	(void)close(ends[1]);
}

static void test_log(void)
{
	char out[2048], text[3000];
	size_t bytes;

	capture(false, "caf\xc3\xa9 is open", out, &bytes);
	check("a notice is a line with our name", strcmp(out, "rowsnap: caf\xc3\xa9 is open\n") == 0);
	capture(true, "mind", out, &bytes);
	check("... a warning says so", strcmp(out, "rowsnap: warning: mind\n") == 0);
	capture(false, "a\nb\x1b[2Jc\x7f" "d\xc2\x9b" "e\xff", out, &bytes);
	check("control characters and bad UTF-8 become question marks",
	      strcmp(out, "rowsnap: a?b?[2Jc?d??e?\n") == 0);
	memset(text, 'z', sizeof(text) - 1);
	text[sizeof(text) - 1] = '\0';
	capture(false, text, out, &bytes);
	check("a long one is cut at 1 KiB and still a line", bytes == 1024 && out[1023] == '\n' && out[1022] == 'z');
}

static void start(struct server *server, const char *path)
{
	if (control_start(server->loop, path, &ops, server, &server->control) < 0)
		abort();
}

int main(void)
{
	char folder[] = "/tmp/rowsnap-test-control.XXXXXX", path[PATH_BYTES];
	struct server server = { 0 };

	if (!mkdtemp(folder) || loop_create(&server.loop) < 0)
		abort();
	(void)snprintf(path, sizeof(path), "%s/test.sock", folder);
	start(&server, path);
	test_talk(&server, path);
	start(&server, path);
	test_garbage(&server, path);
	test_endless_line(&server, path);
	test_longest_line(&server, path);
	test_deaf_client(&server, path);
	test_vanished_client(&server, path);
	test_many(&server, path);
	test_stop_within(&server, path);
	start(&server, path);
	test_path(&server, path);
	test_receive();
	test_log();
	loop_destroy(server.loop);
	(void)rmdir(folder);
	return unit_done();
}
