/* A plugin for QEMU's user mode (plugin interface 1, QEMU 7.2) that counts the instructions which the program executes.
 *
 * The program asks with the system call 0x7a7a, which Linux does not have, and the address of 8 bytes that hold a magic number; the
 * count takes the magic number's place. That the address means the same here as there is checked, since QEMU may map a program
 * elsewhere. Every block of translated code adds its length when it is entered, so the count includes the asking instruction.
 * One thread is exact; several add to the same number without a lock.
 *
 * Debian ships no qemu-plugin.h: what is used of it is declared here. */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define ASK 0x7a7a
#define MAGIC UINT64_C(0x7472696d74616221)
#define NOT_HERE 97 /* the exit code when counts can't be told */

typedef uint64_t Id;
struct qemu_plugin_tb;
enum { ADD_U64 };

void qemu_plugin_register_vcpu_tb_trans_cb(Id id, void (*translated)(Id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, int operation, void *cell, uint64_t value);
void qemu_plugin_register_vcpu_syscall_cb(Id id, void (*called)(Id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t));
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);

#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

static uint64_t executed;

static void translated(Id id, struct qemu_plugin_tb *block) {
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD_U64, &executed, qemu_plugin_tb_n_insns(block));
}

static void called(Id id, unsigned cpu, int64_t number, uint64_t address, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
    (void)id, (void)cpu, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
    uint64_t count = executed, found = 0;
    if (number != ASK)
        return;
    struct iovec here = {&found, sizeof found}, there = {(void *)(uintptr_t)address, sizeof found};
    if (process_vm_readv(getpid(), &here, 1, &there, 1, 0) != sizeof found || found != MAGIC) { /* reads what may not be there */
        fprintf(stderr, "trimtab's QEMU plugin: the program's memory is not at its own addresses, so counts can't be told\n");
        _exit(NOT_HERE);
    }
    memcpy((void *)(uintptr_t)address, &count, sizeof count);
}

EXPORT int qemu_plugin_install(Id id, const void *info, int count, char **words) {
    (void)info, (void)count, (void)words;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
    qemu_plugin_register_vcpu_syscall_cb(id, called);
    return 0;
}
