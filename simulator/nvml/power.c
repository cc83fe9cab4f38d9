/* Power, energy, power limits, temperature and utilisation, by their own calls and as field values. */
#include "api.h"

#define POWER_VALUE_V2 0x0200000Cu
#define TEMPERATURE_V1 0x0100000Cu

enum { SCOPE_GPU, SCOPE_MODULE, SCOPE_MEMORY, SCOPE_GPU_BASE, SCOPES };
enum { VALUE_UINT = 1, VALUE_ULONGLONG = 3 };
enum { SAMPLE_POWER = 0, SAMPLE_GPU = 1, SAMPLE_MEMORY = 2, SAMPLE_SM_CLOCK = 5, SAMPLE_MEMORY_CLOCK = 6 };
enum { POLICY_POWER = 0, POLICIES = 12 };

enum {
    FIELD_POLICY_POWER = 74, /* also the software power cap's event reason counter */
    FIELD_POLICY_THERMAL = 75,
    FIELD_MEMORY_TEMPERATURE = 82,
    FIELD_ENERGY = 83,
    FIELD_POWER_AVERAGE = 185,
    FIELD_POWER_INSTANT = 186,
    FIELD_LIMIT_MIN = 187,
    FIELD_LIMIT_MAX = 188,
    FIELD_LIMIT_DEFAULT = 189,
    FIELD_LIMIT_CURRENT = 190,
    FIELD_LIMIT_REQUESTED = 192,
    FIELD_SW_THERMAL = 269,
    FIELD_HW_THERMAL = 270,
    FIELD_POWER_BRAKE = 271,
};

typedef union {
    double dVal;
    unsigned int uiVal;
    unsigned long long ullVal;
} nvmlValue_t;

typedef struct {
    uint32_t fieldId, scopeId;
    int64_t timestamp, latencyUsec;
    unsigned int valueType;
    nvmlReturn_t nvmlReturn;
    nvmlValue_t value;
} nvmlFieldValue_t;

typedef struct {
    unsigned long long timeStamp;
    nvmlValue_t sampleValue;
} nvmlSample_t;

typedef struct {
    unsigned int version, powerScope, powerValueMw;
} nvmlPowerValue_v2_t;

typedef struct {
    unsigned int version, sensorType;
    int temperature;
} nvmlTemperature_v1_t;

typedef struct {
    unsigned int gpu, memory;
} nvmlUtilization_t;

typedef struct {
    unsigned long long referenceTime, violationTime;
} nvmlViolationTime_t;

static uint64_t enforced_mw(struct flyball_gpu *gpu) {
    uint64_t in_force = LOAD(gpu->cap_in_force_mw), out_of_band = LOAD(gpu->out_of_band_limit_mw);
    return out_of_band != 0 && out_of_band < in_force ? out_of_band : in_force;
}

/* Ampere and newer report the mean over a second, but for GA100, which reports what it sees. */
static uint64_t usage_mw(struct flyball_gpu *gpu) {
    return gpu->power_usage_is_averaged ? LOAD(gpu->power_average_mw) : LOAD(gpu->power_instant_mw);
}

NUMBER_GETTER(nvmlDeviceGetPowerUsage, usage_mw(gpu))
NUMBER_GETTER(nvmlDeviceGetPowerManagementMode, 1)
NUMBER_GETTER(nvmlDeviceGetPowerManagementLimit, LOAD(gpu->cap_requested_mw))
NUMBER_GETTER(nvmlDeviceGetPowerManagementDefaultLimit, gpu->cap_default_mw)
NUMBER_GETTER(nvmlDeviceGetEnforcedPowerLimit, enforced_mw(gpu))

EXPORT nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *min_mw,
                                                                 unsigned int *max_mw) {
    BEGIN(nvmlDeviceGetPowerManagementLimitConstraints);
    NOT_NULL(min_mw);
    NOT_NULL(max_mw);
    *min_mw = (unsigned int)gpu->cap_min_mw;
    *max_mw = (unsigned int)gpu->cap_max_mw;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTotalEnergyConsumption(nvmlDevice_t device, unsigned long long *millijoules) {
    BEGIN(nvmlDeviceGetTotalEnergyConsumption);
    NOT_NULL(millijoules);
    *millijoules = LOAD(gpu->energy_mj);
    return NVML_SUCCESS;
}

/* The stamp goes first: whoever sees the new limit finds when it was made. */
static nvmlReturn_t store_limit(struct flyball_gpu *gpu, unsigned int milliwatts) {
    if (milliwatts < gpu->cap_min_mw || milliwatts > gpu->cap_max_mw) return NVML_ERROR_INVALID_ARGUMENT;
    STORE(gpu->cap_stamp_ns, flyball_monotonic_ns());
    STORE(gpu->cap_requested_mw, milliwatts);
    if (!LOAD(gpu->cap_not_in_force)) STORE(gpu->cap_in_force_mw, milliwatts);
    ADD_ONE(gpu->cap_sequence);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceSetPowerManagementLimit(nvmlDevice_t device, unsigned int milliwatts) {
    BEGIN_WRITE(nvmlDeviceSetPowerManagementLimit, offsetof(struct flyball_gpu, cap_set_calls));
    return store_limit(gpu, milliwatts);
}

EXPORT nvmlReturn_t nvmlDeviceSetPowerManagementLimit_v2(nvmlDevice_t device, nvmlPowerValue_v2_t *value) {
    BEGIN_WRITE(nvmlDeviceSetPowerManagementLimit_v2, offsetof(struct flyball_gpu, cap_set_calls));
    NOT_NULL(value);
    if (value->version != POWER_VALUE_V2) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (value->powerScope >= SCOPES) return NVML_ERROR_INVALID_ARGUMENT;
    if (value->powerScope != SCOPE_GPU) return NVML_ERROR_NOT_SUPPORTED;
    return store_limit(gpu, value->powerValueMw);
}

EXPORT nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *utilization) {
    BEGIN(nvmlDeviceGetUtilizationRates);
    NOT_NULL(utilization);
    utilization->gpu = (unsigned int)LOAD(gpu->utilization_gpu_percent);
    utilization->memory = (unsigned int)LOAD(gpu->utilization_memory_percent);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned int sensor, unsigned int *celsius) {
    BEGIN(nvmlDeviceGetTemperature);
    if (celsius == NULL || sensor != 0) return NVML_ERROR_INVALID_ARGUMENT;
    *celsius = (unsigned int)LOAD(gpu->temperature_celsius);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_v1_t *reading) {
    BEGIN(nvmlDeviceGetTemperatureV);
    NOT_NULL(reading);
    if (reading->version != TEMPERATURE_V1) return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
    if (reading->sensorType != 0) return NVML_ERROR_INVALID_ARGUMENT;
    reading->temperature = (int)LOAD(gpu->temperature_celsius);
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, unsigned int threshold,
                                                      unsigned int *celsius) {
    static const unsigned int thresholds[] = {92, 89, 95, 87}; /* modelled: shutdown, slowdown, memory, GPU */
    BEGIN(nvmlDeviceGetTemperatureThreshold);
    if (celsius == NULL || threshold >= 8) return NVML_ERROR_INVALID_ARGUMENT;
    if (threshold >= sizeof thresholds / sizeof thresholds[0]) return NVML_ERROR_NOT_SUPPORTED;
    *celsius = thresholds[threshold];
    return NVML_SUCCESS;
}

static void as_uint(nvmlFieldValue_t *field, uint64_t value) {
    field->valueType = VALUE_UINT;
    field->value.ullVal = 0;
    field->value.uiVal = (unsigned int)value;
}

static void as_ulonglong(nvmlFieldValue_t *field, uint64_t value) {
    field->valueType = VALUE_ULONGLONG;
    field->value.ullVal = value;
}

/* Whether the field is a power reading, which also exists for scopes these cards do not report. */
static int has_scope(uint32_t id) { return id == FIELD_POWER_AVERAGE || id == FIELD_POWER_INSTANT; }

static nvmlReturn_t read_field(struct flyball_gpu *gpu, nvmlFieldValue_t *field) {
    if (has_scope(field->fieldId) && field->scopeId >= SCOPES) return NVML_ERROR_INVALID_ARGUMENT;
    if (has_scope(field->fieldId) && field->scopeId != SCOPE_GPU) return NVML_ERROR_NOT_SUPPORTED;
    switch (field->fieldId) {
    case FIELD_POLICY_POWER: as_ulonglong(field, LOAD(gpu->power_cap_violation_ns)); break;
    case FIELD_POLICY_THERMAL:
    case FIELD_SW_THERMAL:
    case FIELD_HW_THERMAL:
    case FIELD_POWER_BRAKE: as_ulonglong(field, 0); break; /* neither heat nor a power brake is modelled */
    case FIELD_MEMORY_TEMPERATURE: as_uint(field, LOAD(gpu->memory_temperature_celsius)); break;
    case FIELD_ENERGY: as_ulonglong(field, LOAD(gpu->energy_mj)); break;
    case FIELD_POWER_AVERAGE: as_uint(field, LOAD(gpu->power_average_mw)); break;
    case FIELD_POWER_INSTANT: as_uint(field, LOAD(gpu->power_instant_mw)); break;
    case FIELD_LIMIT_MIN: as_uint(field, gpu->cap_min_mw); break;
    case FIELD_LIMIT_MAX: as_uint(field, gpu->cap_max_mw); break;
    case FIELD_LIMIT_DEFAULT: as_uint(field, gpu->cap_default_mw); break;
    case FIELD_LIMIT_CURRENT: as_uint(field, enforced_mw(gpu)); break;
    case FIELD_LIMIT_REQUESTED: as_uint(field, LOAD(gpu->cap_requested_mw)); break;
    default: return NVML_ERROR_NOT_SUPPORTED;
    }
    return NVML_SUCCESS;
}

/* One field's trouble is told in that field; the call itself succeeds. */
EXPORT nvmlReturn_t nvmlDeviceGetFieldValues(nvmlDevice_t device, int count, nvmlFieldValue_t *fields) {
    BEGIN(nvmlDeviceGetFieldValues);
    if (count <= 0 || fields == NULL) return NVML_ERROR_INVALID_ARGUMENT;
    for (int i = 0; i < count; i++) {
        fields[i].nvmlReturn = read_field(gpu, &fields[i]);
        fields[i].timestamp = (int64_t)flyball_unix_us();
        fields[i].latencyUsec = 0;
    }
    return NVML_SUCCESS;
}

/* A real card keeps some hundred samples; this one answers its newest. */
EXPORT nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, unsigned int type, unsigned long long last_seen,
                                         unsigned int *value_type, unsigned int *count, nvmlSample_t *samples) {
    BEGIN(nvmlDeviceGetSamples);
    (void)last_seen;
    NOT_NULL(value_type);
    NOT_NULL(count);
    uint64_t value;
    switch (type) {
    case SAMPLE_POWER: value = LOAD(gpu->power_instant_mw); break;
    case SAMPLE_GPU: value = LOAD(gpu->utilization_gpu_percent); break;
    case SAMPLE_MEMORY: value = LOAD(gpu->utilization_memory_percent); break;
    case SAMPLE_SM_CLOCK: value = LOAD(gpu->sm_mhz); break;
    case SAMPLE_MEMORY_CLOCK: value = gpu->memory_mhz; break;
    default: return NVML_ERROR_NOT_SUPPORTED;
    }
    unsigned int room = *count;
    *value_type = VALUE_UINT;
    *count = 1;
    if (samples == NULL) return NVML_SUCCESS; /* the caller asks how many */
    if (room < 1) return NVML_ERROR_INSUFFICIENT_SIZE;
    samples[0].timeStamp = flyball_unix_us();
    samples[0].sampleValue.ullVal = 0;
    samples[0].sampleValue.uiVal = (unsigned int)value;
    return NVML_SUCCESS;
}

EXPORT nvmlReturn_t nvmlDeviceGetViolationStatus(nvmlDevice_t device, unsigned int policy,
                                                 nvmlViolationTime_t *violation) {
    BEGIN(nvmlDeviceGetViolationStatus);
    if (violation == NULL || policy >= POLICIES) return NVML_ERROR_INVALID_ARGUMENT;
    violation->referenceTime = flyball_unix_us();
    violation->violationTime = policy == POLICY_POWER ? LOAD(gpu->power_cap_violation_ns) : 0;
    return NVML_SUCCESS;
}
