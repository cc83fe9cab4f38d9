/* The layout of the state file, told to whoever wants to check it against another description. */
#include "api.h"

struct field {
    const char *name;
    uint64_t offset, size;
};

#define COUNT_OF(table) (sizeof(table) / sizeof((table)[0]))

static const struct field header_fields[] = {
#define ONE(type, name) {#name, offsetof(struct flyball_header, name), sizeof(type)},
#define MANY(type, name, count) {#name, offsetof(struct flyball_header, name), sizeof(type) * (count)},
    FLYBALL_HEADER_FIELDS(ONE, MANY)
#undef ONE
#undef MANY
};

static const struct field gpu_fields[] = {
#define ONE(type, name) {#name, offsetof(struct flyball_gpu, name), sizeof(type)},
#define MANY(type, name, count) {#name, offsetof(struct flyball_gpu, name), sizeof(type) * (count)},
    FLYBALL_GPU_FIELDS(ONE, MANY)
#undef ONE
#undef MANY
};

static const char *const call_names[] = {
#define X(call) #call,
    FLYBALL_CALL_LIST(X)
#undef X
};

/* Field `index` of the header (table 0) or of a GPU's block (table 1), in bytes; 0 past the end. */
EXPORT int flyball_nvml_layout(unsigned int table, unsigned int index, const char **name, uint64_t *offset,
                               uint64_t *size) {
    if (table > 1 || index >= (table == 0 ? COUNT_OF(header_fields) : COUNT_OF(gpu_fields))) return 0;
    const struct field *field = table == 0 ? &header_fields[index] : &gpu_fields[index];
    *name = field->name;
    *offset = field->offset;
    *size = field->size;
    return 1;
}

/* The name of the call whose fault cells are number `index`; NULL past the end. */
EXPORT const char *flyball_nvml_call_name(unsigned int index) {
    return index < COUNT_OF(call_names) ? call_names[index] : NULL;
}
