/* Start and end of the library, the mapped state file, permission, injected faults, and system queries. */
#define _GNU_SOURCE
#include "api.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define STATE_FILE_NAME "flyball-gpus.state"
#define CUDA_VERSION 13000
#define NVML_MAJOR "13"

static pthread_mutex_t init_mutex = PTHREAD_MUTEX_INITIALIZER;
static unsigned int references; /* guarded by init_mutex */
static struct flyball_header *current; /* atomic: NULL while not initialised */
static struct {
    struct flyball_header *header;
    dev_t device;
    ino_t inode;
    int writable;
} mapped; /* guarded by init_mutex but for `writable`, which is set before `current` */

static struct flyball_device devices[FLYBALL_MAX_GPUS];

/* Uses of a counted fault seen by this process, for mappings that cannot be written. */
static pthread_mutex_t fault_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct {
    uint64_t epoch;
    int64_t used;
} own_uses[FLYBALL_MAX_GPUS][FLYBALL_CALLS];

static int state_path(char *path, size_t size) {
    const char *named = getenv("FLYBALL_NVML_STATE");
    if (named != NULL && named[0] != '\0') return snprintf(path, size, "%s", named) < (int)size;
    Dl_info self;
    if (dladdr((void *)&devices, &self) == 0 || self.dli_fname == NULL) return 0;
    const char *slash = strrchr(self.dli_fname, '/');
    int directory = slash == NULL ? 0 : (int)(slash - self.dli_fname) + 1;
    return snprintf(path, size, "%.*s%s", directory, self.dli_fname, STATE_FILE_NAME) < (int)size;
}

static int valid(const struct flyball_header *header, uint64_t bytes) {
    return header->version == FLYBALL_VERSION && header->header_bytes == sizeof(struct flyball_header) &&
           header->gpu_bytes == sizeof(struct flyball_gpu) && header->gpu_count <= FLYBALL_MAX_GPUS &&
           header->file_bytes <= bytes &&
           header->header_bytes + header->gpu_count * header->gpu_bytes <= header->file_bytes;
}

/* A file replaced since the last init is mapped anew. The old mapping stays: another thread may be reading it. */
static nvmlReturn_t map_state(void) {
    char path[4096];
    if (!state_path(path, sizeof path)) return NVML_ERROR_DRIVER_NOT_LOADED;
    int writable = 1;
    int file = open(path, O_RDWR | O_CLOEXEC);
    if (file < 0 && (errno == EACCES || errno == EPERM || errno == EROFS)) {
        writable = 0;
        file = open(path, O_RDONLY | O_CLOEXEC);
    }
    if (file < 0) {
        return errno == EACCES || errno == EPERM ? NVML_ERROR_NO_PERMISSION : NVML_ERROR_DRIVER_NOT_LOADED;
    }
    struct stat about;
    nvmlReturn_t status = NVML_SUCCESS;
    if (fstat(file, &about) != 0 || about.st_size < (off_t)sizeof(struct flyball_header)) {
        status = NVML_ERROR_DRIVER_NOT_LOADED;
    } else if (mapped.header == NULL || about.st_dev != mapped.device || about.st_ino != mapped.inode ||
               writable != mapped.writable) {
        void *memory = mmap(NULL, (size_t)about.st_size, writable ? PROT_READ | PROT_WRITE : PROT_READ,
                            MAP_SHARED, file, 0);
        struct flyball_header *header = memory;
        if (memory == MAP_FAILED || header->magic != FLYBALL_MAGIC) {
            status = NVML_ERROR_DRIVER_NOT_LOADED;
        } else if (!valid(header, (uint64_t)about.st_size)) {
            status = NVML_ERROR_LIB_RM_VERSION_MISMATCH;
        } else {
            mapped.header = header;
            mapped.device = about.st_dev;
            mapped.inode = about.st_ino;
            mapped.writable = writable;
        }
        if (status != NVML_SUCCESS && memory != MAP_FAILED) munmap(memory, (size_t)about.st_size);
    }
    close(file);
    return status;
}

EXPORT nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    (void)flags; /* they choose whether missing GPUs are an error; ours are never missing */
    nvmlReturn_t status = NVML_SUCCESS;
    pthread_mutex_lock(&init_mutex);
    if (references == 0) status = map_state();
    if (status == NVML_SUCCESS) {
        references++;
        for (unsigned int index = 0; index < FLYBALL_MAX_GPUS; index++) devices[index].index = index;
        __atomic_store_n(&current, mapped.header, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&init_mutex);
    return status;
}

EXPORT nvmlReturn_t nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

EXPORT nvmlReturn_t nvmlShutdown(void) {
    nvmlReturn_t status = NVML_ERROR_UNINITIALIZED;
    pthread_mutex_lock(&init_mutex);
    if (references > 0) {
        status = NVML_SUCCESS;
        if (--references == 0) __atomic_store_n(&current, NULL, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&init_mutex);
    return status;
}

struct flyball_header *flyball_header(void) { return __atomic_load_n(&current, __ATOMIC_ACQUIRE); }

struct flyball_gpu *flyball_gpu_at(struct flyball_header *header, unsigned int index) {
    return (struct flyball_gpu *)(header + 1) + index;
}

nvmlDevice_t flyball_handle(unsigned int index) { return &devices[index]; }

nvmlReturn_t flyball_find(nvmlDevice_t device, struct flyball_gpu **gpu) {
    struct flyball_header *header = flyball_header();
    if (header == NULL) return NVML_ERROR_UNINITIALIZED;
    for (unsigned int index = 0; index < header->gpu_count; index++) {
        if (device == &devices[index]) {
            *gpu = flyball_gpu_at(header, index);
            return NVML_SUCCESS;
        }
    }
    return NVML_ERROR_INVALID_ARGUMENT;
}

/* Takes one use of a fault that is set; 0 when it is used up. */
static int take_fault(struct flyball_gpu *gpu, enum flyball_call call) {
    struct flyball_fault *fault = &gpu->faults[call];
    int64_t remaining = LOAD(fault->remaining);
    if (remaining <= 0) return remaining < 0;
    if (mapped.writable) {
        while (remaining > 0) {
            if (__atomic_compare_exchange_n(&fault->remaining, &remaining, remaining - 1, 0, __ATOMIC_ACQ_REL,
                                            __ATOMIC_ACQUIRE)) {
                return 1;
            }
        }
        return 0;
    }
    uint64_t epoch = LOAD(fault->epoch);
    pthread_mutex_lock(&fault_mutex);
    if (own_uses[gpu->index][call].epoch != epoch) {
        own_uses[gpu->index][call].epoch = epoch;
        own_uses[gpu->index][call].used = 0;
    }
    int taken = own_uses[gpu->index][call].used++ < remaining;
    pthread_mutex_unlock(&fault_mutex);
    return taken;
}

nvmlReturn_t flyball_inject(struct flyball_gpu *gpu, enum flyball_call call) {
    uint64_t delay_ms = LOAD(gpu->faults[call].delay_ms);
    if (delay_ms > 0) {
        struct timespec left = {.tv_sec = (time_t)(delay_ms / 1000), .tv_nsec = (long)(delay_ms % 1000) * 1000000};
        while (nanosleep(&left, &left) != 0 && errno == EINTR) continue;
    }
    if (LOAD(gpu->lost)) return NVML_ERROR_GPU_IS_LOST;
    if (take_fault(gpu, call)) return (nvmlReturn_t)LOAD(gpu->faults[call].return_code);
    return NVML_SUCCESS;
}

nvmlReturn_t flyball_begin(nvmlDevice_t device, enum flyball_call call, struct flyball_gpu **gpu) {
    nvmlReturn_t status = flyball_find(device, gpu);
    return status == NVML_SUCCESS ? flyball_inject(*gpu, call) : status;
}

nvmlReturn_t flyball_begin_write(nvmlDevice_t device, enum flyball_call call, size_t counter,
                                 struct flyball_gpu **gpu) {
    nvmlReturn_t status = flyball_find(device, gpu);
    if (status != NVML_SUCCESS) return status;
    uid_t uid = geteuid();
    if (!mapped.writable || (uid != 0 && uid != flyball_header()->admin_uid)) return NVML_ERROR_NO_PERMISSION;
    if (counter != FLYBALL_NOT_COUNTED) ADD_ONE(*(uint64_t *)((char *)*gpu + counter));
    return flyball_inject(*gpu, call);
}

uint64_t flyball_monotonic_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

uint64_t flyball_unix_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000) + (uint64_t)now.tv_nsec / 1000;
}

EXPORT const char *nvmlErrorString(nvmlReturn_t result) {
    switch (result) {
    case 0: return "Success";
    case 1: return "Uninitialized";
    case 2: return "Invalid Argument";
    case 3: return "Not Supported";
    case 4: return "Insufficient Permissions";
    case 6: return "Not Found";
    case 7: return "Insufficient Size";
    case 9: return "Driver Not Loaded";
    case 10: return "Timeout";
    case 15: return "GPU is lost";
    case 16: return "GPU requires reset";
    case 17: return "Blocked by the operating system";
    case 18: return "Driver and library versions differ";
    case 19: return "In use";
    case 25: return "Argument version mismatch";
    case 26: return "Deprecated";
    case 27: return "Not ready";
    default: return "Unknown Error";
    }
}

static nvmlReturn_t system_text(char *buffer, unsigned int length, const char *prefix) {
    struct flyball_header *header = flyball_header();
    if (header == NULL) return NVML_ERROR_UNINITIALIZED;
    NOT_NULL(buffer);
    if (strlen(prefix) + strlen(header->driver_version) >= length) return NVML_ERROR_INSUFFICIENT_SIZE;
    snprintf(buffer, length, "%s%s", prefix, header->driver_version);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length) {
    return system_text(version, length, "");
}

EXPORT nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length) {
    return system_text(version, length, NVML_MAJOR ".");
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    if (flyball_header() == NULL) return NVML_ERROR_UNINITIALIZED;
    NOT_NULL(version);
    *version = CUDA_VERSION;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version) {
    return nvmlSystemGetCudaDriverVersion_v2(version);
}
