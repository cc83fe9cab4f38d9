/* Which devices there are and what they are: handles, names, PCI, memory, MIG, processes, persistence. */
#include "api.h"

#include <stdio.h>
#include <string.h>

#define NO_INSTANCE 0xFFFFFFFFu /* GPU and compute instance ids of a card without MIG */
#define MEMORY_V2 0x02000028u
#define RESERVED_BYTES (UINT64_C(600) << 20) /* modelled: what the driver keeps of the frame buffer */

typedef struct {
    char busIdLegacy[16];
    unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} nvmlPciInfo_t;

typedef struct {
    unsigned long long total, free, used;
} nvmlMemory_t;

typedef struct {
    unsigned int version;
    unsigned long long total, reserved, free, used;
} nvmlMemory_v2_t;

typedef struct {
    unsigned int pid;
    unsigned long long usedGpuMemory;
    unsigned int gpuInstanceId, computeInstanceId;
} nvmlProcessInfo_t;

EXPORT nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    struct flyball_header *header = flyball_header();
    if (header == NULL) return NVML_ERROR_UNINITIALIZED;
    NOT_NULL(count);
    *count = (unsigned int)header->gpu_count;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *found) {
    struct flyball_header *header = flyball_header();
    if (header == NULL) return NVML_ERROR_UNINITIALIZED;
    if (found == NULL || index >= header->gpu_count) return NVML_ERROR_INVALID_ARGUMENT;
    *found = flyball_handle(index);
    return flyball_inject(flyball_gpu_at(header, index), CALL_nvmlDeviceGetHandleByIndex_v2);
}

typedef int (*matches_fn)(const struct flyball_gpu *gpu, const char *wanted);

static nvmlReturn_t find_by(enum flyball_call call, matches_fn matches, const char *wanted, nvmlDevice_t *found) {
    struct flyball_header *header = flyball_header();
    if (header == NULL) return NVML_ERROR_UNINITIALIZED;
    if (wanted == NULL || found == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    for (unsigned int index = 0; index < header->gpu_count; index++) {
        struct flyball_gpu *gpu = flyball_gpu_at(header, index);
        if (matches(gpu, wanted)) {
            *found = flyball_handle(index);
            return flyball_inject(gpu, call);
        }
    }
    return NVML_ERROR_NOT_FOUND;
}

static int has_uuid(const struct flyball_gpu *gpu, const char *wanted) { return strcmp(gpu->uuid, wanted) == 0; }

static int has_serial(const struct flyball_gpu *gpu, const char *wanted) {
    return strcmp(gpu->serial, wanted) == 0;
}

static int has_bus_id(const struct flyball_gpu *gpu, const char *wanted) {
    unsigned int domain, bus, device, function = 0;
    int fields = sscanf(wanted, "%x:%x:%x.%x", &domain, &bus, &device, &function);
    return fields >= 3 && domain == 0 && bus == gpu->pci_bus && device == 0 && function == 0;
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *found) {
    return find_by(CALL_nvmlDeviceGetHandleByUUID, has_uuid, uuid, found);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *found) {
    return find_by(CALL_nvmlDeviceGetHandleBySerial, has_serial, serial, found);
}

EXPORT nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *found) {
    return find_by(CALL_nvmlDeviceGetHandleByPciBusId_v2, has_bus_id, bus_id, found);
}

static nvmlReturn_t copy_text(const char *text, char *buffer, unsigned int length) {
    NOT_NULL(buffer);
    if (strlen(text) >= length) return NVML_ERROR_INSUFFICIENT_SIZE;
    strcpy(buffer, text);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length) {
    BEGIN(nvmlDeviceGetName);
    return copy_text(gpu->product_name, name, length);
}

EXPORT nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length) {
    BEGIN(nvmlDeviceGetUUID);
    return copy_text(gpu->uuid, uuid, length);
}

EXPORT nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length) {
    BEGIN(nvmlDeviceGetSerial);
    return copy_text(gpu->serial, serial, length);
}

NUMBER_GETTER(nvmlDeviceGetIndex, gpu->index)
NUMBER_GETTER(nvmlDeviceGetMinorNumber, gpu->index)
NUMBER_GETTER(nvmlDeviceGetBrand, gpu->brand)
NUMBER_GETTER(nvmlDeviceGetArchitecture, gpu->architecture)
NUMBER_GETTER(nvmlDeviceGetNumaNodeId, gpu->index < 4 ? 0 : 1)
NUMBER_GETTER(nvmlDeviceGetMaxMigDeviceCount, 0)
NUMBER_GETTER(nvmlDeviceIsMigDeviceHandle, 0)
NUMBER_GETTER(nvmlDeviceGetPersistenceMode, LOAD(gpu->persistence_mode))
NUMBER_GETTER(nvmlDeviceGetPerformanceState, 0)
NUMBER_GETTER(nvmlDeviceGetPowerState, 0)

EXPORT nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor) {
    BEGIN(nvmlDeviceGetCudaComputeCapability);
    NOT_NULL(major);
    NOT_NULL(minor);
    *major = (int)gpu->compute_major;
    *minor = (int)gpu->compute_minor;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *info) {
    BEGIN(nvmlDeviceGetPciInfo_v3);
    NOT_NULL(info);
    memset(info, 0, sizeof *info);
    info->bus = (unsigned int)gpu->pci_bus;
    info->pciDeviceId = (unsigned int)gpu->pci_device_id;
    snprintf(info->busIdLegacy, sizeof info->busIdLegacy, "0000:%02X:00.0", info->bus & 0xFFu);
    snprintf(info->busId, sizeof info->busId, "00000000:%02X:00.0", info->bus & 0xFFu);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory) {
    BEGIN(nvmlDeviceGetMemoryInfo);
    NOT_NULL(memory);
    memory->total = gpu->memory_bytes;
    memory->used = RESERVED_BYTES + LOAD(gpu->memory_used_bytes); /* version 1 counts reserved as used */
    memory->free = memory->total - memory->used;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory) {
    BEGIN(nvmlDeviceGetMemoryInfo_v2);
    NOT_NULL(memory);
    if (memory->version != MEMORY_V2) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    memory->total = gpu->memory_bytes;
    memory->reserved = RESERVED_BYTES;
    memory->used = LOAD(gpu->memory_used_bytes);
    memory->free = memory->total - memory->reserved - memory->used;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                            nvmlProcessInfo_t *processes) {
    BEGIN(nvmlDeviceGetComputeRunningProcesses_v3);
    NOT_NULL(count);
    unsigned int room = *count;
    uint64_t pid = LOAD(gpu->process_pid);
    *count = pid == 0 ? 0 : 1;
    if (*count == 0) return NVML_SUCCESS;
    if (room < *count) return NVML_ERROR_INSUFFICIENT_SIZE;
    NOT_NULL(processes);
    processes[0].pid = (unsigned int)pid;
    processes[0].usedGpuMemory = LOAD(gpu->memory_used_bytes);
    processes[0].gpuInstanceId = NO_INSTANCE;
    processes[0].computeInstanceId = NO_INSTANCE;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
                                                             nvmlProcessInfo_t *processes) {
    BEGIN(nvmlDeviceGetGraphicsRunningProcesses_v3);
    (void)processes;
    NOT_NULL(count);
    *count = 0;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *now, unsigned int *pending) {
    BEGIN(nvmlDeviceGetMigMode);
    NOT_NULL(now);
    NOT_NULL(pending);
    *now = 0;
    *pending = 0;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceSetMigMode(nvmlDevice_t device, unsigned int mode, nvmlReturn_t *activation) {
    BEGIN_WRITE(nvmlDeviceSetMigMode, FLYBALL_NOT_COUNTED);
    NOT_NULL(activation);
    *activation = mode == 0 ? NVML_SUCCESS : NVML_ERROR_NOT_SUPPORTED;
    return *activation;
}

EXPORT nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index,
                                                        nvmlDevice_t *mig) {
    BEGIN(nvmlDeviceGetMigDeviceHandleByIndex);
    (void)index;
    NOT_NULL(mig);
    return NVML_ERROR_NOT_FOUND;
}

EXPORT nvmlReturn_t nvmlDeviceSetPersistenceMode(nvmlDevice_t device, unsigned int mode) {
    BEGIN_WRITE(nvmlDeviceSetPersistenceMode, FLYBALL_NOT_COUNTED);
    if (mode > 1) return NVML_ERROR_INVALID_ARGUMENT;
    STORE(gpu->persistence_mode, mode);
    return NVML_SUCCESS;
}
