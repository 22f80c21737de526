/* Stands in for libnvidia-ml.so.1: what nvidia-ml-py, torch and vLLM ask, answered from a profile. */
#include "profile.h"

typedef int result;
typedef struct gpu *device;

enum {
    OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, NOT_LOADED = 9,
    LOST = 15, RESET_REQUIRED = 16, MISMATCH = 18
};

static struct machine machine;
static int references;

/* Every query of a device begins with this. */
#define NEED(device)                                                                              \
    if (!references) return UNINITIALIZED;                                                        \
    if (!(device) || (device) < machine.gpus || (device) >= machine.gpus + machine.n_gpus) return INVALID; \
    if ((device)->fault) return (device)->fault

static result text(char *buffer, unsigned size, const char *value) {
    if (!buffer) return INVALID;
    if (strlen(value) + 1 > size) return TOO_SMALL;
    strcpy(buffer, value);
    return OK;
}

result nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (!references) {
        if (read_profile(&machine)) return NOT_LOADED;
        if (machine.init) return machine.init;
    }
    references++;
    return OK;
}
result nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
result nvmlInit(void) { return nvmlInitWithFlags(0); }
result nvmlShutdown(void) {
    if (!references) return UNINITIALIZED;
    references--;
    return OK;
}

/* The words of the real library. */
const char *nvmlErrorString(result code) {
    switch (code) {
    case OK: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID: return "Invalid Argument";
    case NOT_SUPPORTED: return "Not Supported";
    case NOT_FOUND: return "Not Found";
    case TOO_SMALL: return "Insufficient Size";
    case NOT_LOADED: return "Driver Not Loaded";
    case LOST: return "GPU is lost";
    case RESET_REQUIRED: return "GPU requires reset";
    case MISMATCH: return "Driver/library version mismatch";
    default: return "Unknown Error";
    }
}

result nvmlSystemGetDriverVersion(char *buffer, unsigned size) {
    return references ? text(buffer, size, machine.driver) : UNINITIALIZED;
}
result nvmlSystemGetNVMLVersion(char *buffer, unsigned size) {
    char version[90];
    snprintf(version, sizeof version, "%d.%s", machine.cuda / 1000, machine.driver);
    return references ? text(buffer, size, version) : UNINITIALIZED;
}
result nvmlSystemGetCudaDriverVersion_v2(int *version) {
    if (!references) return UNINITIALIZED;
    *version = machine.cuda;
    return OK;
}
result nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

result nvmlSystemGetProcessName(unsigned pid, char *buffer, unsigned size) {
    if (!references) return UNINITIALIZED;
    for (int i = 0; i < machine.n_gpus; i++)
        for (int j = 0; j < machine.gpus[i].n_processes; j++) {
            struct process *process = &machine.gpus[i].processes[j];
            if (process->pid == pid && process->name[0]) return text(buffer, size, process->name);
        }
    return NOT_FOUND;
}

result nvmlDeviceGetCount_v2(unsigned *count) {
    if (!references) return UNINITIALIZED;
    *count = (unsigned)machine.n_gpus;
    return OK;
}
result nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }

result nvmlDeviceGetHandleByIndex_v2(unsigned index, device *found) {
    if (!references) return UNINITIALIZED;
    if (index >= (unsigned)machine.n_gpus) return INVALID;
    *found = &machine.gpus[index];
    return (*found)->handle_fault;
}
result nvmlDeviceGetHandleByIndex(unsigned index, device *found) { return nvmlDeviceGetHandleByIndex_v2(index, found); }

result nvmlDeviceGetHandleByUUID(const char *uuid, device *found) {
    if (!references) return UNINITIALIZED;
    for (unsigned i = 0; i < (unsigned)machine.n_gpus; i++)
        if (!strcmp(machine.gpus[i].uuid, uuid)) return nvmlDeviceGetHandleByIndex_v2(i, found);
    return NOT_FOUND;
}

result nvmlDeviceGetIndex(device gpu, unsigned *index) {
    NEED(gpu);
    *index = (unsigned)(gpu - machine.gpus);
    return OK;
}
result nvmlDeviceGetName(device gpu, char *buffer, unsigned size) {
    NEED(gpu);
    return text(buffer, size, gpu->name);
}
result nvmlDeviceGetUUID(device gpu, char *buffer, unsigned size) {
    NEED(gpu);
    return text(buffer, size, gpu->uuid);
}
result nvmlDeviceGetVbiosVersion(device gpu, char *buffer, unsigned size) {
    NEED(gpu);
    return gpu->vbios[0] ? text(buffer, size, gpu->vbios) : NOT_SUPPORTED;
}
result nvmlDeviceGetCudaComputeCapability(device gpu, int *major, int *minor) {
    NEED(gpu);
    *major = gpu->major, *minor = gpu->minor;
    return OK;
}
result nvmlDeviceGetNumGpuCores(device gpu, unsigned *cores) {
    NEED(gpu);
    *cores = (unsigned)gpu->cores;
    return gpu->cores ? OK : NOT_SUPPORTED;
}

/* The first form counts what the driver keeps for itself as used, the second does not. */
struct memory { unsigned long long total, free, used; };
struct memory_v2 { unsigned version; unsigned long long total, reserved, free, used; };
result nvmlDeviceGetMemoryInfo(device gpu, struct memory *memory) {
    NEED(gpu);
    memory->total = gpu->memory, memory->used = gpu->used + gpu->reserved;
    memory->free = memory->total - memory->used;
    return OK;
}
result nvmlDeviceGetMemoryInfo_v2(device gpu, struct memory_v2 *memory) {
    NEED(gpu);
    memory->total = gpu->memory, memory->used = gpu->used, memory->reserved = gpu->reserved;
    memory->free = memory->total - memory->used - memory->reserved;
    return OK;
}

struct process_info { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; };
result nvmlDeviceGetComputeRunningProcesses_v3(device gpu, unsigned *count, struct process_info *infos) {
    NEED(gpu);
    unsigned room = *count;
    *count = (unsigned)gpu->n_processes;
    if (room < *count) return TOO_SMALL;
    for (unsigned i = 0; i < *count; i++) {
        infos[i].pid = gpu->processes[i].pid;
        infos[i].used = gpu->processes[i].used;
        infos[i].gpu_instance = infos[i].compute_instance = 0xFFFFFFFF;
    }
    return OK;
}

struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
result nvmlDeviceGetPciInfo_v3(device gpu, struct pci *pci) {
    NEED(gpu);
    memset(pci, 0, sizeof *pci);
    sscanf(gpu->pci, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device);
    put_text(pci->bus_id, sizeof pci->bus_id, gpu->pci);
    snprintf(pci->legacy, sizeof pci->legacy, "%04X:%02X:%02X.0", pci->domain & 0xFFFF, pci->bus & 0xFF, pci->device & 0xFF);
    return OK;
}
result nvmlDeviceGetPciInfo(device gpu, struct pci *pci) { return nvmlDeviceGetPciInfo_v3(gpu, pci); }

static result mode(int value, unsigned *current, unsigned *pending) {
    if (value == ABSENT) return NOT_SUPPORTED;
    *current = *pending = (unsigned)value;
    return OK;
}
result nvmlDeviceGetEccMode(device gpu, unsigned *current, unsigned *pending) {
    NEED(gpu);
    return mode(gpu->ecc, current, pending);
}
result nvmlDeviceGetMigMode(device gpu, unsigned *current, unsigned *pending) {
    NEED(gpu);
    return mode(gpu->mig, current, pending);
}

/* What vLLM asks when it places its processes. */
result nvmlDeviceGetP2PStatus(device gpu, device other, int capability, int *status) {
    (void)other, (void)capability;
    NEED(gpu);
    *status = 0;
    return OK;
}
result nvmlDeviceGetNumaNodeId(device gpu, unsigned *node) {
    NEED(gpu);
    *node = 0;
    return OK;
}
result nvmlDeviceGetCpuAffinity(device gpu, unsigned size, unsigned long *set) {
    NEED(gpu);
    memset(set, 0, size * sizeof *set);
    if (size) set[0] = 1;
    return OK;
}
