/* SM and memory clocks, their locks, and why they are what they are. */
#include "api.h"

enum { CLOCK_GRAPHICS, CLOCK_SM, CLOCK_MEM, CLOCK_VIDEO, CLOCK_TYPES };
enum { CLOCK_ID_CURRENT, CLOCK_ID_APP_TARGET, CLOCK_ID_APP_DEFAULT, CLOCK_ID_BOOST_MAX, CLOCK_IDS };

/* Symbols that nvmlDeviceSetGpuLockedClocks takes in place of MHz. */
#define LIMIT_TDP 0xFFFFFF01u
#define LIMIT_UNLIMITED 0xFFFFFF02u

/* Every reason a data centre card can give: idle, application clocks, power cap, hardware slowdown, sync boost,
 * software and hardware thermal, power brake. */
#define SUPPORTED_REASONS UINT64_C(0xFF)

static nvmlReturn_t clock_of(struct flyball_gpu *gpu, unsigned int type, uint64_t sm_mhz, unsigned int *mhz) {
    if (mhz == NULL || type >= CLOCK_TYPES) return NVML_ERROR_INVALID_ARGUMENT;
    if (type == CLOCK_VIDEO) return NVML_ERROR_NOT_SUPPORTED;
    *mhz = (unsigned int)(type == CLOCK_MEM ? gpu->memory_mhz : sm_mhz);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned int type, unsigned int *mhz) {
    BEGIN(nvmlDeviceGetClockInfo);
    return clock_of(gpu, type, LOAD(gpu->sm_mhz), mhz);
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, unsigned int type, unsigned int *mhz) {
    BEGIN(nvmlDeviceGetMaxClockInfo);
    return clock_of(gpu, type, gpu->sm_max_mhz, mhz);
}

EXPORT nvmlReturn_t nvmlDeviceGetClock(nvmlDevice_t device, unsigned int type, unsigned int id,
                                       unsigned int *mhz) {
    BEGIN(nvmlDeviceGetClock);
    if (id >= CLOCK_IDS) return NVML_ERROR_INVALID_ARGUMENT;
    if (id == CLOCK_ID_APP_TARGET || id == CLOCK_ID_APP_DEFAULT) return NVML_ERROR_NOT_SUPPORTED;
    return clock_of(gpu, type, id == CLOCK_ID_CURRENT ? LOAD(gpu->sm_mhz) : gpu->sm_max_mhz, mhz);
}

EXPORT nvmlReturn_t nvmlDeviceGetMaxCustomerBoostClock(nvmlDevice_t device, unsigned int type,
                                                       unsigned int *mhz) {
    BEGIN(nvmlDeviceGetMaxCustomerBoostClock);
    return clock_of(gpu, type, gpu->sm_max_mhz, mhz);
}

/* A caller first learns the count from INSUFFICIENT_SIZE, then asks again with room for it. */
EXPORT nvmlReturn_t nvmlDeviceGetSupportedMemoryClocks(nvmlDevice_t device, unsigned int *count,
                                                       unsigned int *clocks_mhz) {
    BEGIN(nvmlDeviceGetSupportedMemoryClocks);
    NOT_NULL(count);
    unsigned int room = *count;
    *count = 1;
    if (room < 1) return NVML_ERROR_INSUFFICIENT_SIZE;
    NOT_NULL(clocks_mhz);
    clocks_mhz[0] = (unsigned int)gpu->memory_mhz;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetSupportedGraphicsClocks(nvmlDevice_t device, unsigned int memory_mhz,
                                                         unsigned int *count, unsigned int *clocks_mhz) {
    BEGIN(nvmlDeviceGetSupportedGraphicsClocks);
    NOT_NULL(count);
    if (memory_mhz != gpu->memory_mhz) return NVML_ERROR_NOT_FOUND;
    unsigned int room = *count;
    unsigned int needed = (unsigned int)((gpu->sm_max_mhz - gpu->sm_min_mhz) / gpu->sm_step_mhz) + 1;
    *count = needed;
    if (room < needed) return NVML_ERROR_INSUFFICIENT_SIZE;
    NOT_NULL(clocks_mhz);
    for (unsigned int i = 0; i < needed; i++) {
        clocks_mhz[i] = (unsigned int)(gpu->sm_max_mhz - i * gpu->sm_step_mhz); /* highest first, as NVML does */
    }
    return NVML_SUCCESS;
}

static uint64_t nearest_supported(const struct flyball_gpu *gpu, uint64_t mhz) {
    uint64_t steps = (mhz - gpu->sm_min_mhz + gpu->sm_step_mhz / 2) / gpu->sm_step_mhz;
    uint64_t snapped = gpu->sm_min_mhz + steps * gpu->sm_step_mhz;
    return snapped > gpu->sm_max_mhz ? gpu->sm_max_mhz : snapped;
}

static int is_symbol(unsigned int mhz) { return mhz == LIMIT_TDP || mhz == LIMIT_UNLIMITED; }

/* The stamp goes first: whoever sees the new lock finds when it was made. */
static void store_lock(struct flyball_gpu *gpu, uint64_t lock) {
    STORE(gpu->lock_stamp_ns, flyball_monotonic_ns());
    STORE(gpu->lock_requested, lock);
    if (!LOAD(gpu->lock_not_in_force)) STORE(gpu->lock_in_force, lock);
    ADD_ONE(gpu->lock_sequence);
}

EXPORT nvmlReturn_t nvmlDeviceSetGpuLockedClocks(nvmlDevice_t device, unsigned int min_mhz,
                                                 unsigned int max_mhz) {
    BEGIN_WRITE(nvmlDeviceSetGpuLockedClocks, offsetof(struct flyball_gpu, lock_set_calls));
    if (is_symbol(min_mhz) != is_symbol(max_mhz)) return NVML_ERROR_INVALID_ARGUMENT;
    if (is_symbol(min_mhz)) {
        /* Modelled: the sustained clock is not public, so both symbols mean the highest clock. */
        store_lock(gpu, gpu->sm_max_mhz | gpu->sm_max_mhz << 32);
        return NVML_SUCCESS;
    }
    if (min_mhz > max_mhz || min_mhz < gpu->sm_min_mhz || max_mhz > gpu->sm_max_mhz) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    store_lock(gpu, nearest_supported(gpu, min_mhz) | nearest_supported(gpu, max_mhz) << 32);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceResetGpuLockedClocks(nvmlDevice_t device) {
    BEGIN_WRITE(nvmlDeviceResetGpuLockedClocks, offsetof(struct flyball_gpu, lock_reset_calls));
    store_lock(gpu, FLYBALL_NO_LOCK);
    return NVML_SUCCESS;
}

/* One memory clock is all the modelled cards have, so a memory lock is recorded and changes nothing. */
EXPORT nvmlReturn_t nvmlDeviceSetMemoryLockedClocks(nvmlDevice_t device, unsigned int min_mhz,
                                                    unsigned int max_mhz) {
    BEGIN_WRITE(nvmlDeviceSetMemoryLockedClocks, FLYBALL_NOT_COUNTED);
    if (min_mhz > max_mhz || min_mhz > gpu->memory_mhz || max_mhz < gpu->memory_mhz) {
        return NVML_ERROR_INVALID_ARGUMENT;
    }
    STORE(gpu->memory_lock_requested, gpu->memory_mhz | gpu->memory_mhz << 32);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceResetMemoryLockedClocks(nvmlDevice_t device) {
    BEGIN_WRITE(nvmlDeviceResetMemoryLockedClocks, FLYBALL_NOT_COUNTED);
    STORE(gpu->memory_lock_requested, FLYBALL_NO_LOCK);
    return NVML_SUCCESS;
}

/* Application clocks are deprecated since NVML 13; the modelled cards no longer have them. */
EXPORT nvmlReturn_t nvmlDeviceGetApplicationsClock(nvmlDevice_t device, unsigned int type, unsigned int *mhz) {
    BEGIN(nvmlDeviceGetApplicationsClock);
    if (mhz == NULL || type >= CLOCK_TYPES) return NVML_ERROR_INVALID_ARGUMENT;
    return NVML_ERROR_NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlDeviceGetDefaultApplicationsClock(nvmlDevice_t device, unsigned int type,
                                                          unsigned int *mhz) {
    BEGIN(nvmlDeviceGetDefaultApplicationsClock);
    if (mhz == NULL || type >= CLOCK_TYPES) return NVML_ERROR_INVALID_ARGUMENT;
    return NVML_ERROR_NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlDeviceSetApplicationsClocks(nvmlDevice_t device, unsigned int memory_mhz,
                                                    unsigned int sm_mhz) {
    BEGIN_WRITE(nvmlDeviceSetApplicationsClocks, FLYBALL_NOT_COUNTED);
    (void)memory_mhz;
    (void)sm_mhz;
    return NVML_ERROR_NOT_SUPPORTED;
}

EXPORT nvmlReturn_t nvmlDeviceResetApplicationsClocks(nvmlDevice_t device) {
    BEGIN_WRITE(nvmlDeviceResetApplicationsClocks, FLYBALL_NOT_COUNTED);
    return NVML_ERROR_NOT_SUPPORTED;
}

/* Calls that answer a set of clocks event reasons; each has two names. */
#define REASONS_GETTER(call, value)                                            \
    EXPORT nvmlReturn_t call(nvmlDevice_t device, unsigned long long *answer) { \
        BEGIN(call);                                                           \
        NOT_NULL(answer);                                                      \
        *answer = (value);                                                     \
        return NVML_SUCCESS;                                                   \
    }

REASONS_GETTER(nvmlDeviceGetCurrentClocksEventReasons, LOAD(gpu->event_reasons))
REASONS_GETTER(nvmlDeviceGetCurrentClocksThrottleReasons, LOAD(gpu->event_reasons))
REASONS_GETTER(nvmlDeviceGetSupportedClocksEventReasons, SUPPORTED_REASONS)
REASONS_GETTER(nvmlDeviceGetSupportedClocksThrottleReasons, SUPPORTED_REASONS)
