/* What the files of this library share: the types of the NVML interface they implement, declared anew from its
 * public documentation, and the steps every call begins with. */
#ifndef FLYBALL_API_H
#define FLYBALL_API_H

#include <stddef.h>
#include <stdint.h>

#include "state.h"

#define EXPORT __attribute__((visibility("default")))

typedef unsigned int nvmlReturn_t;
enum {
    NVML_SUCCESS = 0,
    NVML_ERROR_UNINITIALIZED = 1,
    NVML_ERROR_INVALID_ARGUMENT = 2,
    NVML_ERROR_NOT_SUPPORTED = 3,
    NVML_ERROR_NO_PERMISSION = 4,
    NVML_ERROR_NOT_FOUND = 6,
    NVML_ERROR_INSUFFICIENT_SIZE = 7,
    NVML_ERROR_DRIVER_NOT_LOADED = 9,
    NVML_ERROR_GPU_IS_LOST = 15,
    NVML_ERROR_LIB_RM_VERSION_MISMATCH = 18,
    NVML_ERROR_ARGUMENT_VERSION_MISMATCH = 25,
};

/* A device handle points into a table of ours; callers only pass it back. */
struct flyball_device {
    unsigned int index;
};
typedef struct flyball_device *nvmlDevice_t;

/* One cell of the state file, whole. */
#define LOAD(cell) __atomic_load_n(&(cell), __ATOMIC_ACQUIRE)
#define STORE(cell, value) __atomic_store_n(&(cell), (uint64_t)(value), __ATOMIC_RELEASE)
#define ADD_ONE(cell) ((void)__atomic_fetch_add(&(cell), UINT64_C(1), __ATOMIC_ACQ_REL))

/* The mapped file, or NULL before nvmlInit and after the last nvmlShutdown. */
struct flyball_header *flyball_header(void);

/* The card at `index`, and the handle that stands for it. */
struct flyball_gpu *flyball_gpu_at(struct flyball_header *header, unsigned int index);
nvmlDevice_t flyball_handle(unsigned int index);

/* Whether `device` is one of our handles; on success `*gpu` is its card. */
nvmlReturn_t flyball_find(nvmlDevice_t device, struct flyball_gpu **gpu);

/* What the card's injected faults make of `call`: waits where it is slow, returns the code it must fail with. */
nvmlReturn_t flyball_inject(struct flyball_gpu *gpu, enum flyball_call call);

/* find + inject: how every getter begins. */
nvmlReturn_t flyball_begin(nvmlDevice_t device, enum flyball_call call, struct flyball_gpu **gpu);

/* find + permission + count (where `counter` is not NULL) + inject: how every setter begins. `counter` is the
 * offset of a cell in struct flyball_gpu, FLYBALL_NOT_COUNTED for none. */
#define FLYBALL_NOT_COUNTED ((size_t)-1)
nvmlReturn_t flyball_begin_write(nvmlDevice_t device, enum flyball_call call, size_t counter,
                                 struct flyball_gpu **gpu);

uint64_t flyball_monotonic_ns(void);
uint64_t flyball_unix_us(void);

#define BEGIN(call)                                                            \
    struct flyball_gpu *gpu;                                                   \
    {                                                                          \
        nvmlReturn_t begun = flyball_begin(device, CALL_##call, &gpu);         \
        if (begun != NVML_SUCCESS) return begun;                               \
    }

#define BEGIN_WRITE(call, counter)                                             \
    struct flyball_gpu *gpu;                                                   \
    {                                                                          \
        nvmlReturn_t begun = flyball_begin_write(device, CALL_##call, counter, &gpu); \
        if (begun != NVML_SUCCESS) return begun;                               \
    }

#define NOT_NULL(pointer) \
    if ((pointer) == NULL) return NVML_ERROR_INVALID_ARGUMENT

/* Calls that answer one unsigned number of the card. */
#define NUMBER_GETTER(call, value)                                             \
    EXPORT nvmlReturn_t call(nvmlDevice_t device, unsigned int *answer) {      \
        BEGIN(call);                                                           \
        NOT_NULL(answer);                                                      \
        *answer = (unsigned int)(value);                                       \
        return NVML_SUCCESS;                                                   \
    }

#endif
