import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.Plugin;
import org.elasticsearch.transport.Netty4Plugin;

/** Starts one real node of Elasticsearch 7.17 from its published jars, of which no server archive is on Maven Central. */
public final class Elasticsearch extends Node {
    private Elasticsearch(Environment environment) {
        super(environment, List.<Class<? extends Plugin>>of(Netty4Plugin.class), false);
    }

    /** Takes the folder for its data, the HTTP port, the transport port, and further settings as key=value. */
    public static void main(String[] args) throws Exception {
        Settings.Builder settings = Settings.builder()
            .put("path.home", args[0])
            .put("node.name", "search")
            .put("http.host", "127.0.0.1")
            .put("http.port", args[1])
            .put("http.type", "netty4")
            .put("transport.host", "127.0.0.1")
            .put("transport.port", args[2])
            .put("transport.type", "netty4")
            .put("discovery.type", "single-node");
        for (int i = 3; i < args.length; i++) {
            String[] pair = args[i].split("=", 2);
            settings.put(pair[0], pair[1]);
        }
        Environment environment =
            InternalSettingsPreparer.prepareEnvironment(settings.build(), Map.of(), Path.of(args[0], "config"), () -> "search");
        Node node = new Elasticsearch(environment);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                node.close();
            } catch (java.io.IOException error) {
                error.printStackTrace();
            }
        }));
        node.start();
        Thread.currentThread().join();
    }
}
