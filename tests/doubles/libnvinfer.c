/* Stand-ins for libnvinfer, libnvinfer_plugin and libnvonnxparser: just enough for the real Python
 * bindings of TensorRT to import, so that tests can read their classes, enums and signatures.
 * Every factory answers NULL: nothing can be built or run over these.
 */
#include <stddef.h>

#define FACTORY(name) void *name(void); void *name(void) { return NULL; }

FACTORY(createInferBuilder_INTERNAL)
FACTORY(createInferRefitter_INTERNAL)
FACTORY(createInferRuntime_INTERNAL)
FACTORY(createNvOnnxParserRefitter_INTERNAL)
FACTORY(createNvOnnxParser_INTERNAL)
FACTORY(getBuilderPluginRegistry)
FACTORY(getPluginRegistry)

int getNvOnnxParserVersion(void);
int getNvOnnxParserVersion(void) { return 0; }

int initLibNvInferPlugins(void *logger, const char *library_namespace);
int initLibNvInferPlugins(void *logger, const char *library_namespace) {
    (void)logger;
    (void)library_namespace;
    return 0;
}
