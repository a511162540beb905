import java.util.ArrayList;
import java.util.List;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;
import org.elasticsearch.transport.Netty4Plugin;

/** Starts one real node of Elasticsearch 5.6; see ../Elasticsearch.java. */
public final class Elasticsearch extends Node {
    private Elasticsearch(Settings settings) {
        super(InternalSettingsPreparer.prepareEnvironment(settings, null), new ArrayList<>(List.of(Netty4Plugin.class)));
    }

    /** Takes the folder for its data, the HTTP port, the transport port. */
    public static void main(String[] args) throws Exception {
        new Elasticsearch(Settings.builder()
            .put("path.home", args[0])
            .put("node.name", "search")
            .put("http.host", "127.0.0.1")
            .put("http.port", args[1])
            .put("http.type", "netty4")
            .put("transport.host", "127.0.0.1")
            .put("transport.tcp.port", args[2])
            .put("transport.type", "netty4")
            .put("discovery.type", "single-node")
            .build()).start();
        Thread.currentThread().join();
    }
}
