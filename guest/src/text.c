/* SPDX-License-Identifier: 0BSD */
#include <stdarg.h>

#include "guest.h"

/* Without -fno-tree-loop-distribute-patterns (Makefile) the compiler would make these call themselves. */
void *memcpy(void *to, const void *from, size_t n)
{
	uint8_t *t = to;
	const uint8_t *f = from;

	for (; n >= 8; n -= 8, t += 8, f += 8)
		*(uint64_t *)t = *(const uint64_t *)f;
	while (n--)
		*t++ = *f++;
	return to;
}

void *memset(void *to, int c, size_t n)
{
	uint8_t *t = to;
	uint64_t w = (uint8_t)c * 0x0101010101010101ull;

	for (; n >= 8; n -= 8, t += 8)
		*(uint64_t *)t = w;
	while (n--)
		*t++ = (uint8_t)c;
	return to;
}

int memcmp(const void *a, const void *b, size_t n)
{
	const uint8_t *x = a, *y = b;

	for (; n >= 8 && *(const uint64_t *)x == *(const uint64_t *)y; n -= 8)
		x += 8, y += 8;
	for (; n; n--, x++, y++)
		if (*x != *y)
			return *x - *y;
	return 0;
}

size_t strlen(const char *s)
{
	size_t n = 0;

	while (s[n])
		n++;
	return n;
}

bool same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

struct sink {
	char *to;
	size_t size, n;
};

static void put(struct sink *s, char c)
{
	if (s->n + 1 < s->size)
		s->to[s->n++] = c;
}

static void put_number(struct sink *s, uint64_t v, unsigned base)
{
	char digits[20];
	unsigned n = 0;

	do
		digits[n++] = "0123456789abcdef"[v % base];
	while ((v /= base) != 0);
	while (n)
		put(s, digits[--n]);
}

static void vformat(struct sink *s, const char *fmt, va_list ap)
{
	for (; *fmt; fmt++) {
		bool wide = false;

		if (*fmt != '%') {
			put(s, *fmt);
			continue;
		}
		if (*++fmt == 'l')
			wide = true, fmt++;
		switch (*fmt) {
		case 's':
			for (const char *t = va_arg(ap, const char *); *t; t++)
				put(s, *t);
			break;
		case 'c':
			put(s, (char)va_arg(ap, int));
			break;
		case 'u':
		case 'x':
			put_number(s, wide ? va_arg(ap, uint64_t) : va_arg(ap, unsigned), *fmt == 'u' ? 10 : 16);
			break;
		case 0:
			return;
		default:
			put(s, *fmt);
		}
	}
}

size_t format(char *to, size_t size, const char *fmt, ...)
{
	struct sink s = {to, size, 0};
	va_list ap;

	va_start(ap, fmt);
	vformat(&s, fmt, ap);
	va_end(ap);
	if (size)
		to[s.n] = 0;
	return s.n;
}

bool parse_number(const char *s, const char **end, uint64_t *value)
{
	unsigned base = 10, shift = 0;
	uint64_t v = 0;
	const char *first;

	if (s[0] == '0' && (s[1] | 32) == 'x')
		base = 16, s += 2;
	for (first = s;; s++) {
		unsigned c = (unsigned char)*s, digit;

		if (c >= '0' && c <= '9')
			digit = c - '0';
		else if (base == 16 && (c | 32) >= 'a' && (c | 32) <= 'f')
			digit = (c | 32) - 'a' + 10;
		else
			break;
		v = v * base + digit;
	}
	if (s == first)
		return false;
	switch (*s | 32) {
	case 'k':
		shift = 10;
		break;
	case 'm':
		shift = 20;
		break;
	case 'g':
		shift = 30;
		break;
	}
	*value = v << shift;
	*end = shift ? s + 1 : s;
	return true;
}

/* Lines on the serial port. */

enum { COM1 = 0x3f8, FIFO = 16 };

static unsigned passed, failed;

unsigned passes(void) { return passed; }
unsigned failures(void) { return failed; }

void serial_init(void)
{
	outb(COM1 + 1, 0);    /* no interrupts */
	outb(COM1 + 3, 0x80); /* divisor: 115200 baud */
	outb(COM1 + 0, 1);
	outb(COM1 + 1, 0);
	outb(COM1 + 3, 3); /* 8 bits, no parity, 1 stop */
	outb(COM1 + 2, 7); /* FIFOs on and empty */
	outb(COM1 + 4, 3);
}

void serial_write(const char *s, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		/* The FIFO takes 16 bytes once it is empty. Bounded: there may be no port. */
		if (i % FIFO == 0)
			for (int tries = 0; tries < 100000 && !(inb(COM1 + 5) & 0x20); tries++)
				;
		outb(COM1, (uint8_t)s[i]);
	}
}

static void line(const char *word, const char *device, const char *name, const char *fmt, va_list ap)
{
	static char text[512];
	struct sink s = {text, sizeof(text) - 1, 0};

	s.n = format(text, sizeof(text) - 1, "%s %s%s%s", word, device ? device : "", device ? "." : "", name);
	if (*fmt) {
		put(&s, ' ');
		vformat(&s, fmt, ap);
	}
	text[s.n++] = '\n';
	serial_write(text, s.n);
}

void pass(const char *device, const char *name, const char *fmt, ...)
{
	va_list ap;

	passed++;
	va_start(ap, fmt);
	line("PASS", device, name, fmt, ap);
	va_end(ap);
}

void fail(const char *device, const char *name, const char *fmt, ...)
{
	va_list ap;

	failed++;
	va_start(ap, fmt);
	line("FAIL", device, name, fmt, ap);
	va_end(ap);
}

void info(const char *device, const char *name, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	line("INFO", device, name, fmt, ap);
	va_end(ap);
}
