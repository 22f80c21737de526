/* A machine with GPUs, read from the text file that FAKE_GPU_PROFILE names; profiles/README.md has its form.
 *
 * Inside a container only those GPUs are there that a file in the folder FAKE_GPU_VISIBLE is named after, as a real
 * driver shows only those whose device nodes the container got. Without that variable all of them are there.
 */
#ifndef PROFILE_H
#define PROFILE_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_GPUS 16
#define MAX_PROCESSES 8
#define ABSENT (-1) /* the driver answers "Not Supported" */

struct process {
    unsigned pid;
    unsigned long long used;
    char name[64];
};

struct gpu {
    char name[96], uuid[96], pci[32], vbios[32];
    int major, minor, cores, sm, ecc, mig, fault, handle_fault, n_processes;
    unsigned long long memory, used, reserved;
    struct process processes[MAX_PROCESSES];
};

struct machine {
    char driver[80];
    int cuda, libcuda, init, cuda_init, n_gpus;
    struct gpu gpus[MAX_GPUS];
};

static void put_text(char *to, size_t size, const char *from) {
    snprintf(to, size, "%s", from);
}

static int is_visible(const struct gpu *gpu) {
    const char *folder = getenv("FAKE_GPU_VISIBLE");
    char path[512];
    if (!folder)
        return 1;
    snprintf(path, sizeof path, "%s/%s", folder, gpu->uuid);
    return access(path, F_OK) == 0;
}

static void read_process(struct gpu *gpu, const char *value) {
    if (gpu->n_processes == MAX_PROCESSES)
        return;
    struct process *process = &gpu->processes[gpu->n_processes++];
    char *rest;
    process->pid = (unsigned)strtoul(value, &rest, 10);
    process->used = strtoull(rest, &rest, 10) << 20;
    put_text(process->name, sizeof process->name, rest + strspn(rest, " "));
}

static void read_gpu_line(struct gpu *gpu, const char *key, const char *value) {
    int number = atoi(value);
    if (!strcmp(key, "name")) put_text(gpu->name, sizeof gpu->name, value);
    else if (!strcmp(key, "uuid")) put_text(gpu->uuid, sizeof gpu->uuid, value);
    else if (!strcmp(key, "pci")) put_text(gpu->pci, sizeof gpu->pci, value);
    else if (!strcmp(key, "vbios")) put_text(gpu->vbios, sizeof gpu->vbios, value);
    else if (!strcmp(key, "capability")) sscanf(value, "%d.%d", &gpu->major, &gpu->minor);
    else if (!strcmp(key, "cores")) gpu->cores = number;
    else if (!strcmp(key, "sm")) gpu->sm = number;
    else if (!strcmp(key, "ecc")) gpu->ecc = number;
    else if (!strcmp(key, "mig")) gpu->mig = number;
    else if (!strcmp(key, "fault")) gpu->fault = number;
    else if (!strcmp(key, "handle_fault")) gpu->handle_fault = number;
    else if (!strcmp(key, "memory_mib")) gpu->memory = strtoull(value, 0, 10) << 20;
    else if (!strcmp(key, "used_mib")) gpu->used = strtoull(value, 0, 10) << 20;
    else if (!strcmp(key, "reserved_mib")) gpu->reserved = strtoull(value, 0, 10) << 20;
    else if (!strcmp(key, "process")) read_process(gpu, value);
}

static void read_machine_line(struct machine *machine, const char *key, const char *value) {
    if (!strcmp(key, "driver")) put_text(machine->driver, sizeof machine->driver, value);
    else if (!strcmp(key, "cuda")) machine->cuda = atoi(value);
    else if (!strcmp(key, "libcuda")) machine->libcuda = atoi(value);
    else if (!strcmp(key, "init")) machine->init = atoi(value);
    else if (!strcmp(key, "cuda_init")) machine->cuda_init = atoi(value);
}

static void keep_visible(struct machine *machine) {
    int kept = 0;
    for (int i = 0; i < machine->n_gpus; i++)
        if (is_visible(&machine->gpus[i]))
            machine->gpus[kept++] = machine->gpus[i];
    machine->n_gpus = kept;
}

/* Return 0, or -1 where there is no profile to read. */
static int read_profile(struct machine *machine) {
    const char *path = getenv("FAKE_GPU_PROFILE");
    FILE *file = path ? fopen(path, "r") : 0;
    char line[256], key[32];
    struct gpu *gpu = 0;
    memset(machine, 0, sizeof *machine);
    if (!file)
        return -1;
    while (fgets(line, sizeof line, file)) {
        int used = 0;
        line[strcspn(line, "\n")] = 0;
        if (sscanf(line, "%31s %n", key, &used) != 1 || key[0] == '#')
            continue;
        if (!strcmp(key, "gpu") && machine->n_gpus < MAX_GPUS) {
            gpu = &machine->gpus[machine->n_gpus++];
            gpu->ecc = gpu->mig = ABSENT;
        } else if (gpu) {
            read_gpu_line(gpu, key, line + used);
        } else {
            read_machine_line(machine, key, line + used);
        }
    }
    fclose(file);
    keep_visible(machine);
    return 0;
}

#endif
