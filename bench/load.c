/*
 * A load generator: POSTs prepared bodies over keep-alive connections, one request each at a time.
 *
 *   load HOST PORT HEADS BODIES CONNECTIONS REQUESTS [RATE [RETRY]]
 *
 * HEADS is a file of request lines with headers but Content-Length, one for each tenant, BODIES a file of bodies; each
 * part of a file stands behind its length as uint32 (little-endian). Both are cycled until REQUESTS were answered 2xx;
 * a 429 or 503 is sent again after 20 ms, or with RETRY 0 counts as an answer, too. RATE (requests a second, 0: as fast as it goes) is kept by a schedule: latency counts from the
 * scheduled moment. Prints one JSON object: statuses, seconds, latency in ms.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { ANSWER_BYTES = 1 << 16, RETRY_NS = 20 * 1000 * 1000 };

struct connection {
	int fd;
	long body;		/* which body, -1: idle */
	long head;
	size_t sent;
	size_t got;
	int64_t due_ns;		/* when the request should begin, or begin again */
	int64_t began_ns;
	int is_waiting;
	char answer[ANSWER_BYTES];
};

struct parts {
	const char **data;
	uint32_t *bytes;
	long count;
};

static struct parts heads, bodies;
static struct sockaddr_in address;
static int epoll_fd;
static long answered, wanted, started, statuses[600], broken;
static double *latency_ms;
static int64_t first_ns;
static double rate;
static int retries = 1;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static int64_t now_ns(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static struct parts read_parts(const char *path)
{
	int fd = open(path, O_RDONLY);
	struct stat found;
	if (fd < 0 || fstat(fd, &found))
		die(path);
	size_t size = found.st_size;
	char *data = mmap(NULL, size ? size : 1, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
	if (data == MAP_FAILED)
		die(path);
	close(fd);
	struct parts all = { 0 };
	for (size_t at = 0; at < size; all.count++) {
		uint32_t n;
		memcpy(&n, data + at, 4);
		all.data = realloc(all.data, (all.count + 1) * sizeof *all.data);
		all.bytes = realloc(all.bytes, (all.count + 1) * sizeof *all.bytes);
		all.data[all.count] = data + at + 4;
		all.bytes[all.count] = n;
		at += 4 + n;
	}
	return all;
}

static void begin(struct connection *c)
{
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	int on = 1;
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	if (connect(c->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
		die("connect");
	struct epoll_event event = { EPOLLIN | EPOLLOUT | EPOLLET, { .ptr = c } };
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event))
		die("epoll_ctl");
	c->sent = c->got = 0;
}

static void push(struct connection *c)
{
	if (c->body < 0 || c->is_waiting)
		return;
	char length[64];
	int length_bytes = snprintf(length, sizeof length, "Content-Length: %u\r\n\r\n", bodies.bytes[c->body]);
	size_t whole = heads.bytes[c->head] + length_bytes + bodies.bytes[c->body];
	while (c->sent < whole) {
		struct iovec parts[3] = { { (char *)heads.data[c->head], heads.bytes[c->head] },
					  { length, length_bytes },
					  { (char *)bodies.data[c->body], bodies.bytes[c->body] } };
		size_t skip = c->sent;
		int first = 0;
		while (first < 3 && skip >= parts[first].iov_len)
			skip -= parts[first++].iov_len;
		parts[first].iov_base = (char *)parts[first].iov_base + skip;
		parts[first].iov_len -= skip;
		ssize_t n = writev(c->fd, parts + first, 3 - first);
		if (n < 0)
			return; /* EAGAIN: epoll tells; an error shows when reading */
		c->sent += n;
	}
}

static void next(struct connection *c)
{
	c->is_waiting = 0;
	if (started >= wanted) {
		c->body = -1;
		return;
	}
	c->body = started % bodies.count;
	c->head = started % heads.count;
	int64_t now = now_ns();
	c->due_ns = rate > 0 ? first_ns + (int64_t)(started / rate * 1e9) : now;
	started++;
	c->began_ns = c->due_ns;
	c->sent = c->got = 0;
	if (c->due_ns > now)
		c->is_waiting = 1;
	else
		push(c);
}

static void finish(struct connection *c, int status)
{
	statuses[status < 600 ? status : 0]++;
	int is_busy = status == 429 || status == 503;
	if (status / 100 == 2 || (is_busy && !retries)) {
		latency_ms[answered++] = (now_ns() - c->began_ns) / 1e6;
		next(c);
		return;
	}
	if (!is_busy) {
		fprintf(stderr, "status %d: %.*s\n", status, 400, c->answer);
		exit(1);
	}
	c->sent = c->got = 0;
	c->is_waiting = 1;
	c->due_ns = now_ns() + RETRY_NS;
}

static void restart(struct connection *c)
{
	broken++;
	close(c->fd);
	begin(c);
	push(c);
}

static void pull(struct connection *c)
{
	for (;;) {
		ssize_t n = read(c->fd, c->answer + c->got, ANSWER_BYTES - 1 - c->got);
		if (n < 0 && errno == EAGAIN)
			return;
		if (n <= 0) {
			restart(c);
			return;
		}
		c->got += n;
		c->answer[c->got] = 0;
		char *end = strstr(c->answer, "\r\n\r\n");
		char *length = strcasestr(c->answer, "content-length:");
		if (!end || !length || length > end)
			continue;
		if (c->got < (size_t)(end + 4 - c->answer) + strtoul(length + 15, NULL, 10))
			continue;
		int closes = strcasestr(c->answer, "connection: close") != NULL;
		int status = atoi(c->answer + 9);
		if (closes) {
			close(c->fd);
			begin(c);
		}
		finish(c, status);
		if (closes)
			return;
	}
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;
	return (x > y) - (x < y);
}

int main(int argc, char **argv)
{
	if (argc < 7) {
		fprintf(stderr, "usage: load HOST PORT HEADS BODIES CONNECTIONS REQUESTS [RATE [RETRY]]\n");
		return 2;
	}

	address.sin_family = AF_INET;
	address.sin_port = htons(atoi(argv[2]));
	inet_pton(AF_INET, argv[1], &address.sin_addr);
	heads = read_parts(argv[3]);
	bodies = read_parts(argv[4]);
	int connections = atoi(argv[5]);
	wanted = atol(argv[6]);
	rate = argc > 7 ? atof(argv[7]) : 0;
	retries = argc > 8 ? atoi(argv[8]) : 1;
	latency_ms = calloc(wanted, sizeof *latency_ms);
	epoll_fd = epoll_create1(0);
	struct connection *all = calloc(connections, sizeof *all);
	first_ns = now_ns();
	for (int i = 0; i < connections; i++) {
		begin(&all[i]);
		next(&all[i]);
	}
	while (answered < wanted) {
		int64_t now = now_ns(), due = now + 100 * 1000000LL;
		for (int i = 0; i < connections; i++) {
			if (!all[i].is_waiting)
				continue;
			if (all[i].due_ns <= now) {
				all[i].is_waiting = 0;
				push(&all[i]);
			} else if (all[i].due_ns < due)
				due = all[i].due_ns;
		}
		struct epoll_event events[256];
		int timeout_ms = due > now ? (int)((due - now + 999999) / 1000000) : 0;
		int n = epoll_wait(epoll_fd, events, 256, timeout_ms);
		for (int i = 0; i < n; i++) {
			struct connection *c = events[i].data.ptr;
			if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
				pull(c);
			if (events[i].events & EPOLLOUT)
				push(c);
		}
	}
	double seconds = (now_ns() - first_ns) / 1e9;
	qsort(latency_ms, answered, sizeof *latency_ms, by_value);
	printf("{\"requests\": %ld, \"seconds\": %.6f, \"broken\": %ld, \"statuses\": {", answered, seconds, broken);
	const char *comma = "";
	for (int i = 0; i < 600; i++)
		if (statuses[i]) {
			printf("%s\"%d\": %ld", comma, i, statuses[i]);
			comma = ", ";
		}
	printf("}, \"latency_ms\": {\"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"max\": %.3f}}\n",
	       latency_ms[answered / 2], latency_ms[answered * 9 / 10], latency_ms[answered * 99 / 100],
	       latency_ms[answered - 1]);
	return 0;
}
