/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Unix stream sockets at a path: what the control socket and the NBD server share. */
#ifndef IO_SOCKET_H
#define IO_SOCKET_H

/*
 * Binds and listens, mode 0600, close-on-exec, non-blocking. A socket left by a dead server is replaced. Returns the
 * descriptor, or -EADDRINUSE (a live server answers there), -ENAMETOOLONG, -EEXIST (not a socket), or socket errors.
 */
__attribute__((warn_unused_result)) int socket_listen(const char *path);

/*
 * Accepts one connection: non-blocking, close-on-exec. Returns the descriptor, -EPERM for a peer that is neither ours
 * nor root's (it is closed already), -EAGAIN when there are no more, or accept4's errors.
 */
__attribute__((warn_unused_result)) int socket_accept(int listener);

/* Connects; blocking, close-on-exec. Returns the descriptor or a negative errno. */
__attribute__((warn_unused_result)) int socket_connect(const char *path);

#endif
