/* A plugin for qemu's user mode: how often is each block of a kernel executed, and which cache lines
 * would it miss?
 *
 * The program says when to count by two system calls that no Linux has, which fail there:
 *
 *     syscall(COUNT_FROM, begin, end)   from now on; code in [begin, end) alone
 *     syscall(COUNT_TO)                 write what was counted to the file of the argument `out`
 *
 * The file holds 64-bit words: the number of blocks, accesses and misses of either cache, and of each
 * block its address, how often it ran, its number of instructions, and one word for each of these.
 *
 * Arguments: out=FILE,l1=BYTES,l2=BYTES. The caches are write-allocate, by least recent use, of lines
 * of 64 bytes in sets of WAYS. Pages are numbered in the order of their first use, so that what is
 * counted does not depend on where memory was allocated.
 *
 * The declarations are those of version 1 of qemu's plugin interface (qemu 4.2 and later).
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))
#define COUNT_FROM 0x74760
#define COUNT_TO 0x74761
#define WAYS 8
#define LINE_BITS 6
#define PAGE_BITS 12
#define PAGES (1 << 20) /* a table of so many; 4 GiB in all */

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef struct qemu_info qemu_info;

EXPORT int qemu_plugin_version = 1;

extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *));
extern void qemu_plugin_register_vcpu_syscall_cb(
    plugin_id, void (*)(plugin_id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                        uint64_t, uint64_t, uint64_t));
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern uint64_t qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int op, void *, uint64_t);
extern void qemu_plugin_register_vcpu_mem_cb(
    struct qemu_plugin_insn *, void (*)(unsigned, uint32_t, uint64_t, void *), int flags, int rw, void *);
extern unsigned qemu_plugin_mem_size_shift(uint32_t);

enum { ADD = 0, NO_REGISTERS = 0, READS_AND_WRITES = 3 };

typedef struct block {
    uint64_t address, count, length;
    uint32_t *code;
    struct block *next;
} block;

typedef struct {
    uint64_t sets, *lines, *used, clock, accesses, misses;
} cache;

static block *blocks;
static cache level1, level2;
static uint64_t begin, end;
static const char *out;
static struct { uint64_t page, number; } pages[PAGES];
static uint64_t known_pages;

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (!memory) {
        fprintf(stderr, "count: out of memory\n");
        abort();
    }
    return memory;
}

static void make(cache *c, uint64_t bytes) {
    c->sets = bytes / WAYS >> LINE_BITS;
    c->sets = c->sets ? c->sets : 1;
    c->lines = allocate(c->sets * WAYS, 8);
    c->used = allocate(c->sets * WAYS, 8);
}

static void clear(cache *c) {
    memset(c->lines, 0xff, c->sets * WAYS * 8);
    memset(c->used, 0, c->sets * WAYS * 8);
    c->clock = c->accesses = c->misses = 0;
}

static bool hits(cache *c, uint64_t line) {
    uint64_t *lines = c->lines + line % c->sets * WAYS, *used = c->used + line % c->sets * WAYS, oldest = 0;
    c->accesses++;
    for (uint64_t i = 0; i < WAYS; i++) {
        if (lines[i] == line) {
            used[i] = ++c->clock;
            return true;
        }
        if (used[i] < used[oldest])
            oldest = i;
    }
    lines[oldest] = line;
    used[oldest] = ++c->clock;
    c->misses++;
    return false;
}

static uint64_t renumbered(uint64_t address) {
    uint64_t page = (address >> PAGE_BITS) + 1, at = page * 0x9e3779b97f4a7c15u >> 44; /* 0: free */
    while (pages[at].page && pages[at].page != page)
        at = (at + 1) % PAGES;
    if (!pages[at].page) {
        pages[at].page = page;
        pages[at].number = known_pages++;
    }
    return pages[at].number << PAGE_BITS | (address & ((1 << PAGE_BITS) - 1));
}

static void on_access(unsigned cpu, uint32_t info, uint64_t address, void *data) {
    uint64_t last = address + (1u << qemu_plugin_mem_size_shift(info)) - 1;
    for (uint64_t at = address >> LINE_BITS; at <= last >> LINE_BITS; at++) {
        uint64_t line = renumbered(at << LINE_BITS) >> LINE_BITS;
        if (!hits(&level1, line))
            hits(&level2, line);
    }
}

static void on_translation(plugin_id id, struct qemu_plugin_tb *tb) {
    uint64_t address = qemu_plugin_tb_vaddr(tb);
    if (address < begin || address >= end)
        return;
    block *new = allocate(1, sizeof *new);
    new->address = address;
    new->length = qemu_plugin_tb_n_insns(tb);
    new->code = allocate(new->length, 4);
    for (size_t i = 0; i < new->length; i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(tb, i);
        memcpy(new->code + i, qemu_plugin_insn_data(instruction), 4);
        qemu_plugin_register_vcpu_mem_cb(instruction, on_access, NO_REGISTERS, READS_AND_WRITES, 0);
    }
    qemu_plugin_register_vcpu_tb_exec_inline(tb, ADD, &new->count, 1);
    new->next = blocks;
    blocks = new;
}

static void start(uint64_t from, uint64_t to) {
    begin = from, end = to;
    for (block *b = blocks; b; b = b->next) /* translations may serve on: they are kept */
        b->count = 0;
    clear(&level1), clear(&level2);
    memset(pages, 0, sizeof pages);
    known_pages = 0;
}

static void finish(void) {
    FILE *file = fopen(out, "wb");
    uint64_t head[5] = {0, level1.accesses, level1.misses, level2.accesses, level2.misses};
    begin = end = 0;
    if (!file)
        return; /* the reader misses it */
    for (block *b = blocks; b; b = b->next)
        head[0] += b->count != 0;
    fwrite(head, 8, 5, file);
    for (block *b = blocks; b; b = b->next) {
        if (!b->count)
            continue;
        uint64_t words[3] = {b->address, b->count, b->length};
        fwrite(words, 8, 3, file);
        for (size_t i = 0; i < b->length; i++) {
            uint64_t word = b->code[i];
            fwrite(&word, 8, 1, file);
        }
    }
    fclose(file);
}

static void on_syscall(plugin_id id, unsigned cpu, int64_t number, uint64_t a1, uint64_t a2, uint64_t a3,
                       uint64_t a4, uint64_t a5, uint64_t a6, uint64_t a7, uint64_t a8) {
    if (number == COUNT_FROM)
        start(a1, a2);
    else if (number == COUNT_TO)
        finish();
}

EXPORT int qemu_plugin_install(plugin_id id, const qemu_info *info, int argc, char **argv) {
    for (int i = 0; i < argc; i++) {
        char *value = strchr(argv[i], '=');
        if (!value)
            return 1;
        value++;
        if (!strncmp(argv[i], "out=", 4))
            out = strdup(value);
        else if (!strncmp(argv[i], "l1=", 3))
            make(&level1, strtoull(value, 0, 10));
        else if (!strncmp(argv[i], "l2=", 3))
            make(&level2, strtoull(value, 0, 10));
    }
    if (!out || !level1.lines || !level2.lines)
        return 1;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    qemu_plugin_register_vcpu_syscall_cb(id, on_syscall);
    return 0;
}
