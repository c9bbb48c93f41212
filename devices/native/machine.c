#define _GNU_SOURCE
#include "machine.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#define LINE 512

#ifdef COUNT_INSTRUCTIONS
#define EMULATED true
#define ASK 0x7a7a
#define MAGIC UINT64_C(0x7472696d74616221)
const double TICKS_PER_US = 1;

/* The plugin overwrites the cell with the number of instructions so far, this system call's included. */
uint64_t now(void) {
    volatile uint64_t cell = MAGIC;
    syscall(ASK, &cell);
    if (cell == MAGIC) {
        fprintf(stderr, "nothing counts instructions here: this runner needs QEMU with trimtab's plugin\n");
        exit(5);
    }
    return cell;
}

#ifndef PLAIN_CLOCK
/* In place of the C library's, so that LiteRT's own profiler counts too: one instruction is one microsecond. */
int clock_gettime(clockid_t clock, struct timespec *time) {
    (void)clock;
    uint64_t count = now();
    time->tv_sec = (time_t)(count / 1000000);
    time->tv_nsec = (long)(count % 1000000 * 1000);
    return 0;
}
#endif

double clock_step_ns(void) {
    return 1;
}
#else
#define EMULATED false
const double TICKS_PER_US = 1000;

uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

double clock_step_ns(void) {
    struct timespec step;
    return clock_getres(CLOCK_MONOTONIC, &step) == 0 ? (double)step.tv_sec * 1e9 + (double)step.tv_nsec : 1;
}
#endif

/* The first line of a small file, trimmed. */
static bool line_of(const char *path, char line[LINE]) {
    FILE *file = fopen(path, "r");
    if (!file)
        return false;
    size_t length = fread(line, 1, LINE - 1, file);
    fclose(file);
    line[length] = '\0';
    line[strcspn(line, "\n")] = '\0';
    return line[0] != '\0';
}

/* The first value of a key in a file of "key : value" lines. */
static bool value_of(const char *path, const char *key, char value[LINE]) {
    char *line = NULL;
    size_t room = 0, length = strlen(key);
    bool found = false;
    FILE *file = fopen(path, "r");
    if (!file)
        return false;
    while (!found && getline(&line, &room, file) > 0) {
        char *rest = line + length;
        if (strncmp(line, key, length) != 0 || rest[strspn(rest, " \t")] != ':')
            continue;
        rest += strspn(rest, " \t") + 1;
        rest += strspn(rest, " \t");
        rest[strcspn(rest, "\n")] = '\0';
        found = snprintf(value, LINE, "%s", rest) > 0;
    }
    free(line);
    fclose(file);
    return found;
}

/* A reading, after a comma unless it is the first. With a number, with a text, or with neither and a reason. */
static void reading(Text *text, const char *name, const double *number, const char *word, const char *unit, const char *reason) {
    text_format(text, "\"%s\": {\"value\": ", name);
    if (number)
        text_number(text, *number);
    else if (word)
        text_quote(text, word);
    else
        text_add(text, "null");
    text_add(text, ", \"unit\": ");
    text_quote(text, number || word ? unit : "");
    text_add(text, ", \"reason\": ");
    text_quote(text, number || word ? "" : reason);
    text_add(text, "}");
}

static void cpu_model(char name[3 * LINE]) {
    char value[LINE], part[LINE];
    const char *info = "/proc/cpuinfo";
    name[0] = '\0';
    if (value_of(info, "model name", value)) {
        snprintf(name, 3 * LINE, "%s", value);
        return;
    }
    if (line_of("/proc/device-tree/model", value) || value_of(info, "Model", value) || value_of(info, "Hardware", value))
        snprintf(name, 3 * LINE, "%s", value);
    if (value_of(info, "CPU part", part)) {
        size_t length = strlen(name);
        if (!value_of(info, "CPU implementer", value))
            snprintf(value, LINE, "?");
        snprintf(name + length, 3 * LINE - length, "%sArm implementer %s part %s", length ? " · " : "", value, part);
    }
}

static void cpu_quota(Text *text) {
    char line[LINE], quota[32], period[32];
    bool found = line_of("/sys/fs/cgroup/cpu.max", line) && sscanf(line, "%31s %31s", quota, period) == 2;
    if (!found && line_of("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", line) && sscanf(line, "%31s", quota) == 1)
        found = line_of("/sys/fs/cgroup/cpu/cpu.cfs_period_us", line) && sscanf(line, "%31s", period) == 1;
    double cores = found && atof(period) > 0 ? atof(quota) / atof(period) : 0;
    bool none = found && (strcmp(quota, "max") == 0 || strcmp(quota, "-1") == 0);
    reading(text, "cpu_quota", !none && cores > 0 ? &cores : NULL, none ? "none" : NULL, none ? "" : "cores", "no control group limit is visible");
}

static void power_source(Text *text) {
    char path[LINE + 64], line[LINE];
    const char *source = NULL;
    DIR *folder = opendir("/sys/class/power_supply");
    for (struct dirent *entry; folder && !source && (entry = readdir(folder));) {
        snprintf(path, sizeof path, "/sys/class/power_supply/%.250s/type", entry->d_name);
        if (!line_of(path, line) || strcmp(line, "Battery") != 0)
            continue;
        snprintf(path, sizeof path, "/sys/class/power_supply/%.250s/status", entry->d_name);
        source = line_of(path, line) && strcmp(line, "Discharging") == 0 ? "battery" : "mains";
    }
    if (folder)
        closedir(folder);
    reading(text, "power_source", NULL, source, "", "no battery or power supply is reported");
}

static bool hottest(double *heat) {
    char path[LINE + 64], line[LINE], *end;
    bool found = false;
    DIR *folder = opendir("/sys/class/thermal");
    for (struct dirent *entry; folder && (entry = readdir(folder));) {
        if (strncmp(entry->d_name, "thermal_zone", 12) != 0)
            continue;
        snprintf(path, sizeof path, "/sys/class/thermal/%.250s/temp", entry->d_name);
        if (!line_of(path, line))
            continue;
        double value = (double)strtol(line, &end, 10) / 1000;
        if (end == line || (found && value <= *heat))
            continue;
        *heat = value;
        found = true;
    }
    if (folder)
        closedir(folder);
    return found;
}

static bool allowed(cpu_set_t *set) {
    CPU_ZERO(set);
    return sched_getaffinity(0, sizeof *set, set) == 0 && CPU_COUNT(set) > 0;
}

static int first_cpu(void) {
    cpu_set_t set;
    int cpu = 0;
    if (allowed(&set))
        while (cpu < CPU_SETSIZE - 1 && !CPU_ISSET(cpu, &set))
            cpu++;
    return cpu;
}

int usable_cores(void) {
    cpu_set_t set;
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return allowed(&set) ? CPU_COUNT(&set) : online > 0 ? (int)online : 1;
}

void text_cpus(Text *text) {
    cpu_set_t set;
    if (!allowed(&set)) {
        text_add(text, "null");
        return;
    }
    const char *between = "[";
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &set)) {
            text_format(text, "%s%d", between, cpu);
            between = ", ";
        }
    text_add(text, "]");
}

bool pin(const Json *cpus, Fault *fault) {
    cpu_set_t mine, wanted;
    Text known = {0};
    int64_t cpu;
    if (!cpus || cpus->kind == JSON_NULL)
        return true;
    if (cpus->kind != JSON_ARRAY)
        return fail(fault, "internal", "", "\"affinity\" in the request is not a list");
    if (!allowed(&mine))
        return fail(fault, "user", "leave the affinity out", "this system has no CPU affinity to set");
    text_cpus(&known);
    CPU_ZERO(&wanted);
    bool good = cpus->count > 0;
    if (!good)
        fail(fault, "user", "", "CPU affinity names none");
    for (const Json *entry = cpus->first; good && entry; entry = entry->next) {
        good = json_is_whole(entry, &cpu) && cpu >= 0 && cpu < CPU_SETSIZE && CPU_ISSET((size_t)cpu, &mine);
        if (good)
            CPU_SET((size_t)cpu, &wanted);
        else
            fail(fault, "user", "", "CPU affinity names %g", entry->number);
    }
    if (good && sched_setaffinity(0, sizeof wanted, &wanted) != 0)
        good = fail(fault, "user", "", "the CPU affinity could not be set: %s", strerror(errno));
    if (!good)
        snprintf(fault->hint, sizeof fault->hint, "this process may use %.200s", known.bytes);
    text_free(&known);
    return good;
}

void text_snapshot(Text *text) {
    char path[128], line[LINE];
    double number;
    int cpu = first_cpu();
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cpufreq/scaling_governor", cpu);
    text_add(text, "{");
    bool found = line_of(path, line);
    reading(text, "governor", NULL, found ? line : NULL, "", "no cpufreq driver (virtual machines and macOS have none)");
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cpufreq/scaling_cur_freq", cpu);
    bool told = line_of(path, line) && (number = atof(line) / 1000) > 0;
    found = told || (value_of("/proc/cpuinfo", "cpu MHz", line) && (number = atof(line)) > 0);
    text_add(text, ", ");
    reading(text, "clock_mhz", found ? &number : NULL, NULL, told ? "MHz" : "MHz, from /proc/cpuinfo", "neither cpufreq nor the platform tells the clock");
    text_add(text, ", ");
    found = hottest(&number);
    reading(text, "temperature_c", found ? &number : NULL, NULL, "°C", "no thermal zone is visible");
    text_add(text, ", ");
    found = line_of("/proc/loadavg", line) && sscanf(line, "%lf", &number) == 1;
    reading(text, "load_average", found ? &number : NULL, NULL, "", "the platform keeps no load average");
    text_add(text, "}");
}

void text_machine(Text *text) {
    char name[3 * LINE], flags[LINE];
    struct utsname system = {0};
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    uname(&system);
    cpu_model(name);
    text_add(text, "{");
    reading(text, "cpu_model", NULL, name[0] ? name : NULL, "", "neither /proc/cpuinfo nor the platform names the CPU");
    text_add(text, ", ");
    cpu_quota(text);
    text_add(text, ", ");
    bool found = value_of("/proc/cpuinfo", "flags", flags);
    char *line = NULL;
    size_t room = 0;
    bool guest = false;
    FILE *file = found ? fopen("/proc/cpuinfo", "r") : NULL;
    while (file && !guest && getline(&line, &room, file) > 0)
        guest = strncmp(line, "flags", 5) == 0 && strstr(line, " hypervisor");
    free(line);
    if (file)
        fclose(file);
    reading(text, "virtualised", NULL, found ? (guest ? "yes" : "no") : NULL, "", "this CPU or system has no flag that tells");
    text_add(text, ", ");
    power_source(text);
    text_add(text, ", \"machine\": ");
    text_quote(text, system.machine);
    snprintf(flags, sizeof flags, "%.60s %.60s", system.sysname, system.release);
    text_add(text, ", \"os\": ");
    text_quote(text, flags);
    text_format(text, ", \"python\": \"none\", \"cores_online\": %ld", online > 0 ? online : 1);
    bool emulated = EMULATED || strstr(name, "QEMU") || strstr(name, "TCG");
    text_format(text, ", \"emulated\": %s}", emulated ? "true" : "false");
}

static int64_t status_bytes(const char *key) {
    char value[LINE];
    return value_of("/proc/self/status", key, value) ? atoll(value) * 1024 : -1;
}

int64_t peak_begin(void) {
    FILE *file = fopen("/proc/self/clear_refs", "w");
    if (!file)
        return -1;
    bool good = fputs("5", file) >= 0; /* proc(5): VmHWM becomes the present resident size */
    good = fclose(file) == 0 && good;
    return good ? status_bytes("VmRSS") : -1;
}

void text_peak(Text *text, int64_t begin) {
    int64_t top = status_bytes("VmHWM");
    double rise = top > begin ? (double)(top - begin) : 0;
    bool known = begin >= 0 && top >= 0;
    reading(text, "peak_bytes", known ? &rise : NULL, NULL, "bytes", "this kernel does not reset and tell a process's peak memory");
}
