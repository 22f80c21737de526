/* Stands in for libcuda.so.1: counts and describes devices as the profile says, so that a program can look at them and
 * vLLM's extension modules load. No kernel runs with it: whatever else is asked is not supported. */
#include "profile.h"

enum { OK = 0, INVALID_VALUE = 1, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101, NOT_FOUND = 500, NOT_SUPPORTED = 801, NOT_READY = 802 };
enum { MULTIPROCESSOR_COUNT = 16, CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 };

static struct machine machine;
static int is_ready;

#define NEED(device)                                          \
    if (!is_ready) return NOT_INITIALIZED;                    \
    if ((device) < 0 || (device) >= machine.n_gpus) return INVALID_DEVICE; \
    if (machine.gpus[device].fault) return NO_DEVICE

int cuInit(unsigned flags) {
    if (flags) return INVALID_VALUE;
    if (read_profile(&machine) || machine.init || !machine.n_gpus) return NO_DEVICE;
    if (machine.cuda_init) return machine.cuda_init;
    is_ready = 1;
    return OK;
}
int cuDriverGetVersion(int *version) { /* works before cuInit, as the real one does */
    struct machine read;
    *version = read_profile(&read) ? 0 : read.libcuda;
    return OK;
}
int cuDeviceGetCount(int *count) {
    *count = machine.n_gpus;
    return is_ready ? OK : NOT_INITIALIZED;
}
int cuDeviceGet(int *device, int ordinal) {
    NEED(ordinal);
    *device = ordinal;
    return OK;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    NEED(device);
    struct gpu *gpu = &machine.gpus[device];
    switch (attribute) {
    case MULTIPROCESSOR_COUNT: *value = gpu->sm; return OK;
    case CAPABILITY_MAJOR: *value = gpu->major; return OK;
    case CAPABILITY_MINOR: *value = gpu->minor; return OK;
    default: return INVALID_VALUE;
    }
}
int cuDeviceGetUuid_v2(unsigned char *uuid, int device) {
    NEED(device);
    const char *text = machine.gpus[device].uuid + strlen("GPU-");
    for (int i = 0; i < 16; text += 2) {
        unsigned byte;
        if (*text == '-') text++;
        if (sscanf(text, "%2x", &byte) != 1) return INVALID_VALUE;
        uuid[i++] = (unsigned char)byte;
    }
    return OK;
}
int cuDeviceGetPCIBusId(char *buffer, int size, int device) {
    NEED(device);
    snprintf(buffer, (size_t)size, "%s", machine.gpus[device].pci + strlen("0000")); /* a domain of four digits */
    return OK;
}
int cuGetErrorString(int code, const char **text) {
    switch (code) {
    case NO_DEVICE: *text = "no CUDA-capable device is detected"; return OK;
    case NOT_READY: *text = "system not yet initialized"; return OK;
    default: *text = "operation not supported"; return OK;
    }
}
int cuGetProcAddress_v2(const char *name, void **function, int version, unsigned long long flags, void *status) {
    (void)name, (void)version, (void)flags, (void)status;
    if (function) *function = 0;
    return NOT_FOUND;
}

/* Bound when vLLM's extension modules and Triton's launchers load. */
#define REFUSE(name) int name(void) { return NOT_SUPPORTED; }
REFUSE(cuCtxGetCurrent)
REFUSE(cuCtxGetLimit)
REFUSE(cuCtxSetCurrent)
REFUSE(cuCtxSetLimit)
REFUSE(cuDevicePrimaryCtxRetain)
REFUSE(cuFuncGetAttribute)
REFUSE(cuFuncSetAttribute)
REFUSE(cuFuncSetCacheConfig)
REFUSE(cuModuleGetFunction)
REFUSE(cuModuleLoadData)
REFUSE(cuMemAddressFree)
REFUSE(cuMemAddressReserve)
REFUSE(cuMemCreate)
REFUSE(cuMemGetAllocationGranularity)
REFUSE(cuMemMap)
REFUSE(cuMemRelease)
REFUSE(cuMemSetAccess)
REFUSE(cuMemUnmap)
REFUSE(cuPointerGetAttribute)
REFUSE(cuTensorMapEncodeTiled)
