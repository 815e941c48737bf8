/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Doubly linked lists whose links lie in the elements. A link that is in no list points at itself, so list_remove() is
 * harmless twice. Zeroed links must be initialised with list_init() before use.
 */
#ifndef IO_LIST_H
#define IO_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct list {
	struct list *next, *previous;
};

static inline void list_init(struct list *list)
{
	list->next = list;
	list->previous = list;
}

static inline bool list_is_empty(const struct list *list)
{
	return list->next == list;
}

static inline void list_append(struct list *list, struct list *link)
{
	link->previous = list->previous;
	link->next = list;
	list->previous->next = link;
	list->previous = link;
}

static inline void list_remove(struct list *link)
{
	link->previous->next = link->next;
	link->next->previous = link->previous;
	list_init(link);
}

/* Takes the first link off; NULL when empty. */
static inline struct list *list_pop(struct list *list)
{
	struct list *first = list->next;

	if (first == list)
		return NULL;
	list->next = first->next;
	first->next->previous = list;
	list_init(first);
	return first;
}

/* Moves all of `from` to the end of `to`. */
static inline void list_splice(struct list *to, struct list *from)
{
	if (list_is_empty(from))
		return;
	from->next->previous = to->previous;
	to->previous->next = from->next;
	from->previous->next = to;
	to->previous = from->previous;
	list_init(from);
}

#define container_of(pointer, type, member) ((type *)(void *)((char *)(pointer)-offsetof(type, member)))

#define list_for_each(link, head) for (struct list *link = (head)->next; link != (head); link = link->next)

/* The loop's body may remove `link`. */
#define list_for_each_safe(link, head)                                                          \
	for (struct list *link = (head)->next, *link##_next = link->next; link != (head);       \
	     link = link##_next, link##_next = link->next)

#endif
